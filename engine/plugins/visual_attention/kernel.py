"""Triton kernels of `sgl::visual_attention`: attention over a KV cache.

    attend          flash attention; also the log-sum-exp of each row
    combine_splits  one row over a long cache is attended in splits: their sum
    receive         what visual tokens received, from that log-sum-exp: kernel_receive.py

No atomics, and every sum has a fixed order: two runs give the same bits. The query heads of a KV head are packed into
the rows of one tile (row = token * GROUP + head of the group), so that each key is read once for all of them.

Arguments of every kernel: inputs, int32 sizes, outputs, constants.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from engine.plugins.compile import Kernel, Size


@dataclass(frozen=True)
class Heads:
    """Head counts of one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def group(self) -> int:
        """Query heads of one KV head."""
        return self.num_heads // self.num_kv_heads

    def constants(self) -> dict[str, int]:
        """Of every kernel below."""
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "GROUP": self.group(),
            "HEAD_DIM": self.head_dim,
            "BLOCK_DIM": max(16, triton.next_power_of_2(self.head_dim)),
        }

    def scale(self) -> float:
        """Of the logits; with it, exp2 gives what softmax's exp gives."""
        return math.log2(math.e) / math.sqrt(self.head_dim)


@dataclass(frozen=True)
class Tile:
    """What one program works on. rows: packed rows, or visual tokens; columns: keys, or packed scored rows."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


DECODE = Tile(rows=16, columns=64, num_warps=4, num_stages=3)
COMPACT = Tile(rows=64, columns=32, num_warps=4, num_stages=1)
"""Needs no more shared memory than any kernel may have without asking (48 KiB), at head sizes up to 128."""
SPLIT_KEYS = 256
"""Keys of one split, about."""
COMBINED_SPLITS = 16
"""Splits that `combine_splits` holds at once."""


def prefill_tile(capability: int) -> Tile:
    """For GPUs of a compute capability, as in 90: the largest whose registers do not spill."""
    multiplies_from_shared_memory = capability in (90, 100, 103)
    if multiplies_from_shared_memory:
        return Tile(rows=128, columns=64, num_warps=8, num_stages=2)
    return Tile(rows=128, columns=32, num_warps=8, num_stages=3)


def attend_kernel(heads: Heads, tile: Tile) -> Kernel:
    """T: of query, caches and output."""
    types = ("*T", "*T", "*T", "*i32", "*i32", "i32", "i32", "i32", "*T", "*fp32", "*fp32", "*fp32")
    return tiled_kernel(attend, types, heads, tile)


def combine_splits_kernel(heads: Heads) -> Kernel:
    """T: of the output."""
    types = ("*T", "*fp32", "*fp32", "*fp32", "i32", "*T", "*fp32")
    return Kernel(combine_splits, types, heads.constants() | {"BLOCK_SPLITS": COMBINED_SPLITS}, num_warps=4)


def num_splits(sequence: Size, cache: Size) -> Size:
    """S, T -> P of attend: one row has too few programs to read a long cache, so several share it."""
    return (sequence == 1) * (ceil_div(cache, SPLIT_KEYS) - 1) + 1


def attend_grid(heads: Heads, tile: Tile, batch: Size, sequence: Size, cache: Size) -> tuple[Size, Size, Size]:
    tiles = ceil_div(sequence * heads.group(), tile.rows)
    return tiles * num_splits(sequence, cache), heads.num_kv_heads, batch


def ceil_div(a: Size, b: int) -> Size:
    return (a + (b - 1)) // b


def tiled_kernel(function: Any, types: Sequence[str], heads: Heads, tile: Tile) -> Kernel:
    """One that scales logits and works on tiles."""
    constants = {
        "SCALE": heads.scale(),
        **heads.constants(),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
    }
    return Kernel(function, types, constants, tile.num_warps, tile.num_stages)


@triton.jit
def attend(
    query,  # [B,S,H*D]
    key_cache,  # [B,Hkv,T,D]
    value_cache,  # [B,Hkv,T,D]
    past_length,  # int32 [B]: tokens in the cache before this call
    kv_length,  # int32 [B]: after it
    sequence,  # S
    cache,  # T
    splits,  # P; more than 1 only if S is 1
    output,  # [B,S,H*D]; written if P is 1
    log_sum_exp,  # float32 [B,H,S], base 2; written if P is 1
    split_output,  # float32 [B,Hkv,P,GROUP,D]; written otherwise
    split_log_sum_exp,  # float32 [B,Hkv,P,GROUP], -inf of a split without keys; written otherwise
    SCALE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Grid: `attend_grid`. Rows past a request's end see all of its keys."""
    # Later rows see more keys and come first, so that no long program starts last.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    split = program % splits
    kv_head = tl.program_id(1)
    request = tl.program_id(2)
    past = tl.load(past_length + request)
    total = tl.load(kv_length + request)

    first = (program // splits) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_row = row < sequence * GROUP
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    inside = is_row[:, None] & is_dim[None, :]
    place = ((request.to(tl.int64) * sequence + token) * (NUM_KV_HEADS * GROUP) + head) * HEAD_DIM
    place = place[:, None] + dim[None, :]
    q = tl.load(query + place, mask=inside, other=0.0)

    last_token = tl.minimum((first + BLOCK_ROWS - 1) // GROUP, sequence - 1)
    stop = tl.minimum(past + last_token + 1, total)
    split_keys = tl.cdiv(tl.cdiv(cache, splits), BLOCK_COLUMNS) * BLOCK_COLUMNS
    start = split * split_keys
    stop = tl.minimum(stop, start + split_keys)
    # Keys before `middle` are seen by every row of the tile.
    middle = tl.minimum(past + first // GROUP + 1, stop) // BLOCK_COLUMNS * BLOCK_COLUMNS
    middle = tl.maximum(middle, start)

    base = (request.to(tl.int64) * NUM_KV_HEADS + kv_head) * cache * HEAD_DIM
    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total_weight = tl.zeros([BLOCK_ROWS], tl.float32)
    mean = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    largest, total_weight, mean = _attend_keys(
        largest, total_weight, mean, q, key_cache + base, value_cache + base, start, middle, past + token, total,
        SCALE, HEAD_DIM, BLOCK_DIM, BLOCK_COLUMNS, ALL_SEEN=True,
    )  # fmt: skip
    largest, total_weight, mean = _attend_keys(
        largest, total_weight, mean, q, key_cache + base, value_cache + base, middle, stop, past + token, total,
        SCALE, HEAD_DIM, BLOCK_DIM, BLOCK_COLUMNS, ALL_SEEN=False,
    )  # fmt: skip
    mean = mean / tl.where(total_weight > 0, total_weight, 1.0)[:, None]
    exponent = largest + tl.log2(total_weight)
    if splits == 1:
        tl.store(output + place, mean.to(output.dtype.element_ty), mask=inside)
        lse_place = (request * (NUM_KV_HEADS * GROUP) + head) * sequence + token
        tl.store(log_sum_exp + lse_place, exponent, mask=is_row)
    else:
        split_place = ((request * NUM_KV_HEADS + kv_head) * splits + split) * GROUP + row
        tl.store(split_output + split_place[:, None] * HEAD_DIM + dim[None, :], mean, mask=inside)
        tl.store(split_log_sum_exp + split_place, exponent, mask=is_row)


@triton.jit
def _attend_keys(
    largest, total_weight, mean, q, keys, values, start, stop, position, total,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    ALL_SEEN: tl.constexpr,
):  # fmt: skip
    """The running softmax over the keys from `start` to before `stop`. ALL_SEEN: by all rows, without a remainder."""
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    for block in range(start, stop, BLOCK_COLUMNS):
        column = block + tl.arange(0, BLOCK_COLUMNS)
        place = column[:, None] * HEAD_DIM + dim[None, :]
        # What lies behind the end was never written: as a value it must not meet a zero probability.
        is_written = column >= 0 if ALL_SEEN else column < total
        inside = is_written[:, None] & is_dim[None, :]
        k = tl.load(keys + place, mask=inside, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        if not ALL_SEEN:
            seen = (column[None, :] <= position[:, None]) & is_written[None, :]
            logits = tl.where(seen, logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, axis=1) * SCALE)
        shrink = tl.exp2(largest - new_largest)
        weight = tl.exp2(logits * SCALE - new_largest[:, None])
        v = tl.load(values + place, mask=inside, other=0.0)
        mean = tl.dot(weight.to(v.dtype), v, mean * shrink[:, None], input_precision="ieee")
        total_weight = total_weight * shrink + tl.sum(weight, axis=1)
        largest = new_largest
    return largest, total_weight, mean


@triton.jit
def combine_splits(
    attended,  # [B,1,H*D]: `output` of attend
    attended_log_sum_exp,  # float32 [B,H,1]
    split_output,  # float32 [B,Hkv,P,GROUP,D]
    split_log_sum_exp,  # float32 [B,Hkv,P,GROUP]
    splits,  # P
    output,  # the memory of `attended`; unchanged if P is 1
    log_sum_exp,  # the memory of `attended_log_sum_exp`; unchanged if P is 1
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Grid (H, B)."""
    if splits > 1:
        head = tl.program_id(0)
        request = tl.program_id(1)
        base = (request * NUM_KV_HEADS + head // GROUP) * splits * GROUP + head % GROUP
        dim = tl.arange(0, BLOCK_DIM)
        is_dim = dim < HEAD_DIM
        largest = float("-inf")
        for first in range(0, splits, BLOCK_SPLITS):
            split = first + tl.arange(0, BLOCK_SPLITS)
            exponent = tl.load(split_log_sum_exp + base + split * GROUP, mask=split < splits, other=float("-inf"))
            largest = tl.maximum(largest, tl.max(exponent, axis=0))
        total_weight = 0.0
        mean = tl.zeros([BLOCK_DIM], tl.float32)
        for first in range(0, splits, BLOCK_SPLITS):
            split = first + tl.arange(0, BLOCK_SPLITS)
            exponent = tl.load(split_log_sum_exp + base + split * GROUP, mask=split < splits, other=float("-inf"))
            weight = tl.exp2(exponent - largest)
            place = (base + split * GROUP)[:, None] * HEAD_DIM + dim[None, :]
            part = tl.load(split_output + place, mask=(split < splits)[:, None] & is_dim[None, :], other=0.0)
            mean += tl.sum(part * weight[:, None], axis=0)
            total_weight += tl.sum(weight, axis=0)
        place = (request * NUM_KV_HEADS * GROUP + head) * HEAD_DIM + dim
        tl.store(output + place, (mean / total_weight).to(output.dtype.element_ty), mask=is_dim)
        tl.store(log_sum_exp + request * NUM_KV_HEADS * GROUP + head, largest + tl.log2(total_weight))
