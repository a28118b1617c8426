"""Triton kernel of `sgl::prune_visual_tokens`: a gather of rows out of three tensors at once."""

import triton
import triton.language as tl

from engine.plugins.compile import Kernel

BLOCK = 1024
"""Elements that one program copies at once."""


def prune_kernel(width: int, half_dim: int) -> Kernel:
    """T: of the hidden states; A: of the rotary angles."""
    types = ("*T", "*A", "*A", "*i64", "i32", "i32", "*T", "*A", "*A")
    constants = {"WIDTH": width, "HALF_DIM": half_dim, "BLOCK": BLOCK}
    return Kernel(prune_rows, types, constants, num_warps=4)


@triton.jit
def prune_rows(
    hidden,  # [B,S,C]
    rope_cos,  # [B,S,D/2]
    rope_sin,  # [B,S,D/2]
    keep_index,  # int64 [B,S']
    sequence,  # S
    kept,  # S'
    kept_hidden,  # [B,S',C]
    kept_cos,  # [B,S',D/2]
    kept_sin,  # [B,S',D/2]
    WIDTH: tl.constexpr,
    HALF_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (S', B)."""
    to = tl.program_id(1).to(tl.int64) * kept + tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * sequence + tl.load(keep_index + to)
    _copy_row(hidden + row * WIDTH, kept_hidden + to * WIDTH, WIDTH, BLOCK)
    _copy_row(rope_cos + row * HALF_DIM, kept_cos + to * HALF_DIM, HALF_DIM, BLOCK)
    _copy_row(rope_sin + row * HALF_DIM, kept_sin + to * HALF_DIM, HALF_DIM, BLOCK)


@triton.jit
def _copy_row(source, destination, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, SIZE, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(destination + place, tl.load(source + place, mask=place < SIZE), mask=place < SIZE)
