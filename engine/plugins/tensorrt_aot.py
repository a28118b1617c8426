"""What the quickly deployable plugins of TensorRT have in common.

A plugin is one kernel: its parameters are the plugin's inputs, int32 sizes, and its outputs. The PTX goes into the
plan, which then needs neither a plugin library nor Python.
"""

from collections.abc import Mapping, Sequence

import tensorrt as trt
import tensorrt.plugin as trtp

from engine.plugins.compile import Kernel, Size, compile_kernel

Compiled = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
"""Name, PTX, launch, sizes."""
FLOAT = trt.DataType.FLOAT
TYPES = {FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
"""Triton's names."""


def compiled(
    kernel: Kernel, types: Mapping[str, trtp.TensorDesc], capability: int, grid: Sequence[Size], sizes: Sequence[Size]
) -> Compiled:
    """What `aot_impl` returns. types: a tensor of each letter in the kernel's types."""
    binary = compile_kernel(kernel, {letter: TYPES[tensor.dtype] for letter, tensor in types.items()}, capability)
    launch = trtp.KernelLaunchParams(*grid)
    launch.block_x = binary.threads
    launch.shared_mem = binary.shared_bytes
    scalars = trtp.SymIntExprs(len(sizes))
    for index, size in enumerate(sizes):
        scalars[index] = trtp.SymInt32(size)
    return binary.name, binary.ptx, launch, scalars


def combinations(tensors: Sequence[trtp.TensorDesc], tactics: Sequence[int]) -> list[trtp.AutoTuneCombination]:
    """What `autotune` returns: the types that the network has, each of the tactics."""
    names = {"fp32": "FP32", "fp16": "FP16"}
    types = [names.get(TYPES.get(tensor.dtype, ""), tensor.dtype.name) for tensor in tensors]
    return [trtp.AutoTuneCombination(",".join(types), "LINEAR", tactics)]
