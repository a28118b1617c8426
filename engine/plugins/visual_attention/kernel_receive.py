"""Triton kernel of `sgl::visual_attention`: the attention that each visual token received from the scored rows.

Their probabilities are recomputed from the log-sum-exp that `attend` left, and summed in a fixed order. `score_mask` is
not read: it must be causal, and that follows from past_length.
"""

import triton
import triton.language as tl

from engine.plugins.compile import Kernel, Size
from engine.plugins.visual_attention.kernel import Heads, Tile, ceil_div, tiled_kernel

RECEIVE = Tile(rows=64, columns=32, num_warps=4, num_stages=2)
"""Like COMPACT without more shared memory than any kernel may have: there is no other to take its place."""


def receive_kernel(heads: Heads) -> Kernel:
    """T: of query and keys."""
    types = ("*T", "*T", "*i32", "*fp32", "*i64", "*fp32", "*i64", "i32", "i32", "i32", "i32", "*fp32")
    return tiled_kernel(receive, types, heads, RECEIVE)


def receive_grid(heads: Heads, batch: Size, visual: Size) -> tuple[Size, Size, Size]:
    return ceil_div(visual, RECEIVE.rows), heads.num_kv_heads, batch


@triton.jit
def receive(
    query,  # [B,S,H*D]
    key_cache,  # [B,Hkv,T,D]
    past_length,  # int32 [B]
    log_sum_exp,  # float32 [B,H,S], base 2
    score_row,  # int64 [B,R]
    score_weight,  # float32 [B,R]
    visual_column,  # int64 [B,V]
    sequence,  # S
    cache,  # T
    scored,  # R
    visual,  # V
    received,  # float32 [B,Hkv,V]: what each KV head's queries give; their sum over Hkv is the op's output
    SCALE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Grid: `receive_grid`."""
    kv_head = tl.program_id(1)
    request = tl.program_id(2)
    past = tl.load(past_length + request)
    token = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_token = token < visual
    column = tl.load(visual_column + request * visual + token, mask=is_token, other=0)
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    base = (request.to(tl.int64) * NUM_KV_HEADS + kv_head) * cache * HEAD_DIM
    key_place = base + column[:, None] * HEAD_DIM + dim[None, :]
    k = tl.load(key_cache + key_place, mask=is_token[:, None] & is_dim[None, :], other=0.0)

    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for first in range(0, scored * GROUP, BLOCK_COLUMNS):
        packed = first + tl.arange(0, BLOCK_COLUMNS)
        is_row = packed < scored * GROUP
        index = request * scored + packed // GROUP
        row = tl.load(score_row + index, mask=is_row, other=0)
        weight = tl.load(score_weight + index, mask=is_row, other=0.0)
        head = kv_head * GROUP + packed % GROUP
        place = ((request.to(tl.int64) * sequence + row) * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
        q = tl.load(query + place[:, None] + dim[None, :], mask=is_row[:, None] & is_dim[None, :], other=0.0)
        exponent = tl.load(log_sum_exp + (request * (NUM_KV_HEADS * GROUP) + head) * sequence + row, mask=is_row)
        probability = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * SCALE - exponent[None, :])
        # A selection, not a product: padding rows may hold anything.
        counts = (column[:, None] <= past + row[None, :]) & (weight != 0.0)[None, :]
        total += tl.sum(tl.where(counts, probability * weight[None, :], 0.0), axis=1)
    tl.store(received + (request * NUM_KV_HEADS + kv_head) * visual + token, total, mask=is_token)
