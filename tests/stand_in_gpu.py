"""A machine with GPUs, as far as our runtime asks: plans run on `fake_tensorrt`, ranks meet over `fake_nccl`."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.build.targets import tensorrt_plan
from engine.runtime import plan_memory
from engine.runtime.executor_tensorrt import TensorRtExecutor
from engine.target import Target
from tests import fake_nccl, fake_tensorrt

LOAD: Any = TensorRtExecutor.load.__func__  # type: ignore[attr-defined]


def put_gpus(patch: pytest.MonkeyPatch, gpus: int = 1, device: str = "cpu") -> list[tuple[str, Path]]:
    """What runs plans, in float32, on those of the machine's GPUs that the process sees from here on.

    device: of torch, in the place of a GPU's memory. -> torch's name of the GPU that each plan was to run on, and the
    plan, as they are loaded.
    """
    loaded: list[tuple[str, Path]] = []

    def visible() -> list[int]:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return list(range(gpus)) if seen is None else [int(gpu) for gpu in seen.split(",") if int(gpu) < gpus]

    patch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_tensorrt)
    patch.setattr(plan_memory, "ALIGNMENT", fake_tensorrt.ALIGNMENT)
    patch.setitem(sys.modules, "nccl", SimpleNamespace(core=fake_nccl))
    patch.setitem(sys.modules, "nccl.core", fake_nccl)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: len(visible()))
    patch.setattr(torch.cuda, "set_device", lambda index: fake_nccl.record(f"gpu {visible()[index]}"))

    def load(
        cls: type[TensorRtExecutor], target: Target, path: Path, gpu: str, records: bool = True
    ) -> TensorRtExecutor:
        loaded.append((gpu, path))
        executor: TensorRtExecutor = LOAD(cls, target, path, device, records)
        return executor

    patch.setattr(TensorRtExecutor, "load", classmethod(load))
    _compute_in_float32(patch)
    return loaded


def put_compiler(patch: pytest.MonkeyPatch) -> None:
    """What builds plans, in float32."""
    patch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_tensorrt)
    patch.setattr(tensorrt_plan, "run_compiler", fake_tensorrt.compile_plan)
    _compute_in_float32(patch)


def _compute_in_float32(patch: pytest.MonkeyPatch) -> None:
    """A manifest says what its plans were built with."""
    patch.setattr(Target, "activations", lambda self, precision: "float32")
