"""How fast visual_attention is at the shapes of InternVL2-2B: against torch, against itself without scores, and against
eager attention, which is what gives attention weights elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

from engine.plugins.visual_attention import launch
from engine.plugins.visual_attention.kernel import COMPACT, Tile
from tools.gpu_check.check import Check, Line, Measured, Missing, at_least, at_most
from tools.gpu_check.kernels import HEADS
from tools.gpu_check.machine import milliseconds

TOKENS = (1856, 10000)
"""Seven tiles of a picture and a question; and the longest that is asked of a small model."""
TEXT = 64
"""Tokens after the picture, all of which are scored in prefill."""
OTHER_CACHES_BYTES = 512 << 20
"""A decode of one layer finds another layer's keys in the chip's cache: the calls take turns over this much."""
TILES = (
    Tile(128, 64, 8, 2),
    Tile(128, 32, 8, 3),
    Tile(128, 128, 8, 2),
    Tile(128, 64, 8, 3),
    Tile(64, 64, 4, 2),
    COMPACT,
)


@dataclass(frozen=True)
class Call:
    """One layer's attention over `tokens` keys, for all of them (prefill) or for the last one (decode)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    past_length: torch.Tensor
    kv_length: torch.Tensor
    score_row: torch.Tensor
    score_weight: torch.Tensor
    visual_column: torch.Tensor

    def attend(self, tile: Tile | None = None) -> launch.Attended:
        return launch.attend(self.query, self.key, self.value, self.past_length, self.kv_length, tile)

    def attend_and_receive(self) -> torch.Tensor:
        rows = (self.score_row, self.score_weight, self.visual_column)
        return launch.receive(self.query, self.key, self.past_length, self.attend(), *rows)

    def torch_attend(self) -> torch.Tensor:
        query = self._query_heads()
        is_prefill = query.shape[2] > 1
        return scaled_dot_product_attention(query, self.key, self.value, is_causal=is_prefill, enable_gqa=True)

    def eager(self, mask: torch.Tensor | None) -> torch.Tensor:
        """transformers' attention with weights, and what the visual tokens received."""
        module: Any = SimpleNamespace(num_key_value_groups=HEADS.group(), training=False)
        scale = HEADS.head_dim**-0.5
        _, weights = eager_attention_forward(module, self._query_heads(), self.key, self.value, mask, scale)
        scored = weights[:, :, -self.score_row.shape[1] :, : self.visual_column.shape[1]]
        return scored.sum((1, 2), dtype=torch.float32)

    def causal_mask(self) -> torch.Tensor | None:
        """What transformers adds to the logits; nothing for one row."""
        rows, keys = self.query.shape[1], self.key.shape[2]
        if rows == 1:
            return None
        return self.query.new_full((1, 1, rows, keys), float("-inf")).triu(1)

    def _query_heads(self) -> torch.Tensor:
        return self.query.view(1, -1, HEADS.num_heads, HEADS.head_dim).transpose(1, 2)


def make_call(rows: int, tokens: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Call:
    """rows: 1 or `tokens`."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    cache = (1, HEADS.num_kv_heads, tokens, HEADS.head_dim)
    scored = torch.arange(max(0, rows - TEXT), rows, device=device)[None]
    return Call(
        normal(1, rows, HEADS.num_heads * HEADS.head_dim),
        normal(*cache),
        normal(*cache),
        integers(tokens - rows),
        integers(tokens),
        scored,
        torch.ones_like(scored, dtype=torch.float32),
        torch.arange(tokens - TEXT, device=device)[None],
    )


def measure_attention() -> Iterator[Measured | Missing]:
    for tokens in TOKENS:
        yield from _compare(tokens, tokens)
    for tokens in TOKENS:
        yield from _compare(1, tokens)


def _compare(rows: int, tokens: int) -> Iterator[Measured | Missing]:
    call = make_call(rows, tokens)
    kv_bytes = 2 * call.key.numel() * call.key.element_size()
    copies = 1 if rows > 1 else -(-OTHER_CACHES_BYTES // kv_bytes)
    calls = cycle([call, *(make_call(rows, tokens) for _ in range(copies - 1))])
    plain = milliseconds(lambda: next(calls).attend())
    scored = milliseconds(lambda: next(calls).attend_and_receive())
    theirs = milliseconds(lambda: next(calls).torch_attend())
    flops = 4 * rows * tokens * HEADS.num_heads * HEADS.head_dim / (1 if rows == 1 else 2)
    rate = f"{flops / plain / 1e9:,.0f} TFLOP/s" if rows > 1 else f"{kv_bytes / plain / 1e6:,.0f} GB/s"
    yield Measured(theirs / plain, f"{plain:.4f} ms ours ({rate}), {theirs:.4f} ms torch")
    yield Measured(scored / plain, f"{scored:.4f} ms with, {plain:.4f} ms without; {call.score_row.shape[1]} rows")
    yield _compare_eager(calls, scored)


def _compare_eager(calls: Iterator[Call], scored: float) -> Measured | Missing:
    """scored: our milliseconds."""
    try:
        mask = next(calls).causal_mask()
        eager = milliseconds(lambda: next(calls).eager(mask))
    except torch.OutOfMemoryError:
        return Missing("all weights do not fit into this GPU's memory")
    return Measured(eager / scored, f"{eager:.4f} ms eager")


def measure_tiles() -> Iterator[Measured | Missing]:
    call = make_call(TOKENS[0], TOKENS[0])
    for tile in TILES:
        yield _try_tile(partial(call.attend, tile))


def _try_tile(run: Callable[[], object]) -> Measured | Missing:
    try:
        return Measured(milliseconds(run))
    except Exception as error:  # a tile that this chip has too little shared memory for
        return Missing(str(error).partition("\n")[0])


def _lines(what: str) -> tuple[Line, ...]:
    return (
        Line(f"{what}: our speed over torch's scaled_dot_product_attention", "x", at_least(0.7)),
        Line(f"{what}: our time with scores over without", "x", at_most(1.03)),
        Line(f"{what}: our speed with scores over eager attention with weights", "x", at_least(5)),
    )


ATTENTION = Check(
    "attention",
    f"visual_attention at InternVL2-2B's shapes: {HEADS.num_heads} heads, {HEADS.num_kv_heads} KV heads, "
    f"head size {HEADS.head_dim}, bf16",
    True,
    (
        *(line for tokens in TOKENS for line in _lines(f"prefill of {tokens:,} tokens")),
        *(line for tokens in TOKENS for line in _lines(f"decode after {tokens:,} tokens")),
    ),
    measure_attention,
)
TILE_CHOICE = Check(
    "tiles",
    f"Tiles of attend, prefill of {TOKENS[0]:,} tokens",
    True,
    tuple(
        Line(f"{tile.rows} rows, {tile.columns} keys, {tile.num_warps} warps, {tile.num_stages} stages", "ms")
        for tile in TILES
    ),
    measure_tiles,
)
