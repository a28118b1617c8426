"""Plugins run as TensorRT would run them: what they say of themselves, and their kernels in Triton's interpreter."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from engine.plugins.function import DOMAIN
from tests.plugins.tensorrt_stub import Launch, Tensor, launch, stub_process
from tools.gpu_check.interpreter import interpreter

CAPABILITY = 80
PLUGINS = ("attend", "combine_splits", "receive", "prune_rows")


@contextmanager
def plugin_ops(directory: Path) -> Iterator[list[type[OpRun]]]:
    """The plugins as operators of ONNX's reference. directory: for the stub library."""
    with stub_process(directory) as stub, interpreter() as process:
        yield [_operator(name, stub, process) for name in PLUGINS]


def _operator(name: str, stub: ProcessPoolExecutor, process: ProcessPoolExecutor) -> type[OpRun]:
    def run(self: Any, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        namespace, version = attributes.pop("plugin_namespace"), attributes.pop("plugin_version")
        assert (namespace, version) == (DOMAIN, "1")
        tensors = [Tensor(x.shape, ir.DataType.from_numpy(x.dtype).name) for x in inputs]
        tactic = 1 if name == "attend" else 0
        described = stub.submit(launch, name, CAPABILITY, tensors, attributes, tactic).result()
        return process.submit(run_kernel, described, inputs, attributes).result()

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


def run_kernel(described: Launch, inputs: Sequence[np.ndarray], attributes: dict[str, int]) -> tuple[np.ndarray, ...]:
    """The kernel of that name with TensorRT's arguments: inputs, scalars, outputs."""
    import torch

    tensors = [torch.from_numpy(x.copy()) for x in inputs]
    outputs = [
        torch.full(output.shape, float("nan")) if source is None else tensors[source]
        for output, source in zip(described.outputs, described.aliased, strict=True)
    ]
    _kernel(described.name, inputs, attributes).launch(described.grid, *tensors, *described.scalars, *outputs)
    return tuple(output.numpy() for output in outputs)


def _kernel(name: str, inputs: Sequence[np.ndarray], attributes: dict[str, int]) -> Any:
    from engine.plugins.prune_visual_tokens.kernel import prune_kernel
    from engine.plugins.visual_attention import kernel, kernel_receive

    if name == "prune_rows":
        return prune_kernel(inputs[0].shape[2], inputs[1].shape[2])
    heads = kernel.Heads(**attributes)
    if name == "attend":
        return kernel.attend_kernel(heads, kernel.prefill_tile(CAPABILITY))
    return kernel.combine_splits_kernel(heads) if name == "combine_splits" else kernel_receive.receive_kernel(heads)
