"""The kernels of `sgl::visual_attention` as plugins of TensorRT, in a row: attend, combine_splits, receive.

combine_splits writes into its input: the builder's preview feature ALIASED_PLUGIN_IO_10_03 must be on.
"""

import tensorrt.plugin as trtp
from tensorrt.plugin import TensorDesc

from engine.plugins.function import DOMAIN
from engine.plugins.tensorrt_aot import FLOAT, Compiled, combinations, compiled
from engine.plugins.visual_attention.kernel import (
    COMPACT,
    DECODE,
    Heads,
    attend_grid,
    attend_kernel,
    combine_splits_kernel,
    num_splits,
    prefill_tile,
)
from engine.plugins.visual_attention.kernel_receive import receive_grid, receive_kernel


def register(capability: int, lazy_register: bool) -> None:
    """See `register_plugins`."""
    _register_attend(capability, lazy_register)
    _register_combine_splits(capability, lazy_register)
    _register_receive(capability, lazy_register)


def _register_attend(capability: int, lazy_register: bool) -> None:
    name = f"{DOMAIN}::attend"
    # The builder measures each at the shapes of each profile; the last one runs wherever a kernel runs.
    tactics = {1: prefill_tile(capability), 2: DECODE, 3: COMPACT}

    @trtp.register(name, lazy_register=lazy_register)
    def describe(
        query: TensorDesc,
        key_cache: TensorDesc,
        value_cache: TensorDesc,
        past_length: TensorDesc,
        kv_length: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> tuple[TensorDesc, TensorDesc, TensorDesc, TensorDesc]:
        """[B,S,H*D], [B,Hkv,T,D] x2, int32 [B] x2 -> [B,S,H*D], [B,H,S], [B,Hkv,P,G,D], [B,Hkv,P,G]: see the kernel."""
        (batch, sequence, _), (_, _, cache, _) = query.shape_expr, key_cache.shape_expr
        parts = (batch, num_kv_heads, num_splits(sequence, cache), num_heads // num_kv_heads)
        return (
            query.like(),
            trtp.from_shape_expr((batch, num_heads, sequence), FLOAT),
            trtp.from_shape_expr((*parts, head_dim), FLOAT),
            trtp.from_shape_expr(parts, FLOAT),
        )

    @trtp.autotune(name)
    def tune(
        query: TensorDesc,
        key_cache: TensorDesc,
        value_cache: TensorDesc,
        past_length: TensorDesc,
        kv_length: TensorDesc,
        outputs: tuple[TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return combinations((query, key_cache, value_cache, past_length, kv_length, *outputs), list(tactics))

    @trtp.aot_impl(name)
    def implement(
        query: TensorDesc,
        key_cache: TensorDesc,
        value_cache: TensorDesc,
        past_length: TensorDesc,
        kv_length: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        outputs: tuple[TensorDesc],
        tactic: int,
    ) -> Compiled:
        heads, tile = Heads(num_heads, num_kv_heads, head_dim), tactics[tactic]
        (batch, sequence, _), (_, _, cache, _) = query.shape_expr, key_cache.shape_expr
        grid = attend_grid(heads, tile, batch, sequence, cache)
        sizes = (sequence, cache, num_splits(sequence, cache))
        return compiled(attend_kernel(heads, tile), {"T": query}, capability, grid, sizes)


def _register_combine_splits(capability: int, lazy_register: bool) -> None:
    name = f"{DOMAIN}::combine_splits"

    @trtp.register(name, lazy_register=lazy_register)
    def describe(
        attended: TensorDesc,
        attended_log_sum_exp: TensorDesc,
        split_output: TensorDesc,
        split_log_sum_exp: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> tuple[TensorDesc, TensorDesc]:
        """The outputs of attend -> the first two of them, complete, in the same memory."""
        return attended.aliased(), attended_log_sum_exp.aliased()

    @trtp.aot_impl(name)
    def implement(
        attended: TensorDesc,
        attended_log_sum_exp: TensorDesc,
        split_output: TensorDesc,
        split_log_sum_exp: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        outputs: tuple[TensorDesc],
        tactic: int,
    ) -> Compiled:
        kernel = combine_splits_kernel(Heads(num_heads, num_kv_heads, head_dim))
        grid = (num_heads, attended.shape_expr[0])
        return compiled(kernel, {"T": attended}, capability, grid, (split_log_sum_exp.shape_expr[2],))


def _register_receive(capability: int, lazy_register: bool) -> None:
    name = f"{DOMAIN}::receive"

    @trtp.register(name, lazy_register=lazy_register)
    def describe(
        query: TensorDesc,
        key_cache: TensorDesc,
        past_length: TensorDesc,
        log_sum_exp: TensorDesc,
        score_row: TensorDesc,
        score_weight: TensorDesc,
        visual_column: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> TensorDesc:
        """[B,S,H*D], [B,Hkv,T,D], int32 [B], [B,H,S], int64 [B,R], [B,R], int64 [B,V] -> [B,Hkv,V]: see the kernel."""
        batch, visual = visual_column.shape_expr
        return trtp.from_shape_expr((batch, num_kv_heads, visual), FLOAT)

    @trtp.aot_impl(name)
    def implement(
        query: TensorDesc,
        key_cache: TensorDesc,
        past_length: TensorDesc,
        log_sum_exp: TensorDesc,
        score_row: TensorDesc,
        score_weight: TensorDesc,
        visual_column: TensorDesc,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        outputs: tuple[TensorDesc],
        tactic: int,
    ) -> Compiled:
        heads = Heads(num_heads, num_kv_heads, head_dim)
        (batch, sequence, _), (_, _, cache, _) = query.shape_expr, key_cache.shape_expr
        scored, visual = score_row.shape_expr[1], visual_column.shape_expr[1]
        grid, sizes = receive_grid(heads, batch, visual), (sequence, cache, scored, visual)
        return compiled(receive_kernel(heads), {"T": query}, capability, grid, sizes)
