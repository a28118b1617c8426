"""The kernels of `sgl::visual_attention` on torch tensors."""

from dataclasses import dataclass

import torch

from engine.gpu import CAPABILITIES
from engine.plugins.visual_attention.kernel import (
    DECODE,
    Heads,
    Tile,
    attend_grid,
    attend_kernel,
    combine_splits_kernel,
    num_splits,
    prefill_tile,
)
from engine.plugins.visual_attention.kernel_receive import receive_grid, receive_kernel


@dataclass(frozen=True)
class Attended:
    """output [B,S,H*D]; log_sum_exp float32 [B,H,S] of each row's logits, base 2."""

    output: torch.Tensor
    log_sum_exp: torch.Tensor


def visual_attention(
    query: torch.Tensor,
    present_key: torch.Tensor,
    present_value: torch.Tensor,
    past_length: torch.Tensor,
    kv_length: torch.Tensor,
    score_row: torch.Tensor,
    score_weight: torch.Tensor,
    visual_column: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contract after the caches were updated: `output` and `received`."""
    attended = attend(query, present_key, present_value, past_length, kv_length)
    received = receive(query, present_key, past_length, attended, score_row, score_weight, visual_column)
    return attended.output, received


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    past_length: torch.Tensor,
    kv_length: torch.Tensor,
    tile: Tile | None = None,
) -> Attended:
    """[B,S,H*D], [B,Hkv,T,D] x2, int32 [B] x2: causal attention; the cache already holds this call's keys and values.

    tile: None chooses by the number of rows.
    """
    heads = heads_of(query, key_cache)
    (batch, sequence, _), cache = query.shape, key_cache.shape[2]
    is_small = sequence * heads.group() <= DECODE.rows
    tile = tile or (DECODE if is_small else prefill_tile(capability(query.device)))
    splits = num_splits(sequence, cache)

    def statistics(*shape: int) -> torch.Tensor:
        return query.new_empty(shape, dtype=torch.float32)

    output, log_sum_exp = torch.empty_like(query), statistics(batch, heads.num_heads, sequence)
    parts = (batch, heads.num_kv_heads, splits, heads.group()) if splits > 1 else (1,)
    split_output, split_log_sum_exp = statistics(*parts, heads.head_dim), statistics(*parts)
    attend_kernel(heads, tile).launch(
        attend_grid(heads, tile, batch, sequence, cache),
        query, key_cache, value_cache, past_length, kv_length, sequence, cache, splits,
        output, log_sum_exp, split_output, split_log_sum_exp,
    )  # fmt: skip
    if splits > 1:
        combine_splits_kernel(heads).launch(
            (heads.num_heads, batch),
            output, log_sum_exp, split_output, split_log_sum_exp, splits, output, log_sum_exp,
        )  # fmt: skip
    return Attended(output, log_sum_exp)


def receive(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    past_length: torch.Tensor,
    attended: Attended,
    score_row: torch.Tensor,
    score_weight: torch.Tensor,
    visual_column: torch.Tensor,
) -> torch.Tensor:
    """[B,S,H*D], [B,Hkv,T,D], int32 [B], its Attended, int64 [B,R], float32 [B,R], int64 [B,V] -> float32 [B,1,V]"""
    heads = heads_of(query, key_cache)
    (batch, sequence, _), scored, visual = query.shape, score_row.shape[1], visual_column.shape[1]
    received = score_weight.new_empty(batch, heads.num_kv_heads, visual)
    receive_kernel(heads).launch(
        receive_grid(heads, batch, visual),
        query, key_cache, past_length, attended.log_sum_exp, score_row, score_weight, visual_column,
        sequence, key_cache.shape[2], scored, visual, received,
    )  # fmt: skip
    return received.sum(1, keepdim=True)


def heads_of(query: torch.Tensor, key_cache: torch.Tensor) -> Heads:
    """[B,S,H*D], [B,Hkv,T,D]"""
    _, num_kv_heads, _, head_dim = key_cache.shape
    return Heads(query.shape[2] // head_dim, num_kv_heads, head_dim)


def capability(device: torch.device) -> int:
    """Compute capability, as in 90; of a CPU, where kernels are interpreted, the lowest."""
    if device.type == "cpu":
        return CAPABILITIES[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
