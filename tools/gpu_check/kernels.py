"""The kernels at the dimensions of InternVL2-2B's language model."""

from engine.plugins.compile import Binary, Kernel, compile_kernel
from engine.plugins.prune_visual_tokens.kernel import prune_kernel
from engine.plugins.visual_attention.kernel import (
    DECODE,
    Heads,
    attend_kernel,
    combine_splits_kernel,
    prefill_tile,
)
from engine.plugins.visual_attention.kernel_receive import receive_kernel

HEADS = Heads(num_heads=16, num_kv_heads=8, head_dim=128)
WIDTH = 2048
TYPES = {"T": "bf16", "A": "fp32"}
PREFILL = "attend, prefill"


def kernels(capability: int) -> dict[str, Kernel]:
    """By name, as they are chosen for GPUs of a compute capability, as in 90."""
    return {
        PREFILL: attend_kernel(HEADS, prefill_tile(capability)),
        "attend, decode": attend_kernel(HEADS, DECODE),
        "combine_splits": combine_splits_kernel(HEADS),
        "receive": receive_kernel(HEADS),
        "prune_visual_tokens": prune_kernel(WIDTH, HEADS.head_dim // 2),
    }


def compile_named(name: str, capability: int) -> Binary:
    return compile_kernel(kernels(capability)[name], TYPES, capability)
