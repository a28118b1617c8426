"""The language graph: one for prefill, decode and the parallel scoring pass; small and large alike.

Shapes: B requests, S new tokens, T cache length, V visual tokens, R wanted rows, C hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import nn

from engine import bindings as names
from engine.bindings import Scoring, language_bindings, segment_of
from engine.dims import Limits
from engine.graphs.declaration import declare, finish
from engine.graphs.layers import Linear, RMSNorm, Weight, WeightPart, all_reduce, cast, dims, like, set_dtype, shaped
from engine.model_config import LanguageConfig
from engine.parallel import Shard
from engine.plugins.lowering import Lowering
from engine.plugins.received_attention.score_mask import causal_score_mask
from engine.plugins.targets.onnxruntime import ONNXRUNTIME


@dataclass(frozen=True)
class Tokens:
    """What travels from layer to layer beside the hidden states."""

    hidden: ir.Value
    cos: ir.Value
    sin: ir.Value
    past_length: ir.Value
    kv_length: ir.Value
    shared_inputs: Sequence[ir.Value]
    """Of the attention, `Lowering.shared_inputs`."""
    wanted: ir.Value | None
    """[B,R], the rows that go on behind this layer's attention, as others serve its keys, values and scores only; None
    is all."""
    residual: ir.Value
    """The hidden states of those that go on."""


class Embedding(nn.Module):
    """[B,S], [V,C], [B,S] -> [B,S,C]: word embeddings, visual embeddings where visual_slot points to one."""

    def __init__(self, config: LanguageConfig, shard: Shard) -> None:
        super().__init__()
        self.shard = shard
        self.rows = shard.vocabulary(config.vocab_size)
        self.weight = Weight((config.vocab_size, config.hidden_size), WeightPart(self.rows))

    def forward(self, op: Any, ids: ir.Value, visual: ir.Value, slot: ir.Value) -> ir.Value:
        if self.shard.world_size > 1:
            local = op.Sub(ids, self.rows.start)
            owned = op.And(op.GreaterOrEqual(local, 0), op.Less(local, len(self.rows)))
            words = op.Gather(self.weight, op.Where(owned, local, 0))
            words = all_reduce(op, op.Where(op.Unsqueeze(owned, [-1]), words, 0.0), self.shard)
        else:
            words = op.Gather(self.weight, ids)
        is_visual = op.GreaterOrEqual(op.Unsqueeze(slot, [-1]), 0)
        return op.Where(is_visual, op.Gather(visual, op.Max(slot, 0)), words)


class Attention(nn.Module):
    """Rotary grouped-query attention of one layer on this rank's heads."""

    def __init__(self, config: LanguageConfig, shard: Shard, scoring: Scoring, lowering: Lowering) -> None:
        super().__init__()
        heads = shard.part(config.num_heads, "num_heads")
        kv_heads = shard.kv_heads(config.num_kv_heads)
        size, dim = config.hidden_size, config.head_dim
        q = range(heads.start * dim, heads.stop * dim)
        kv = range(kv_heads.start * dim, kv_heads.stop * dim)
        self.q_proj = Linear(size, config.num_heads * dim, config.qkv_bias, rows=q)
        self.k_proj = Linear(size, config.num_kv_heads * dim, config.qkv_bias, rows=kv)
        self.v_proj = Linear(size, config.num_kv_heads * dim, config.qkv_bias, rows=kv)
        self.q_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else None
        self.o_proj = Linear(config.num_heads * dim, size, columns=q)
        self.num_heads, self.num_kv_heads, self.shard = len(heads), len(kv_heads), shard
        scored = lowering.visual_attention if scoring is Scoring.IN_ENGINE else None
        self.function = (scored or lowering.cached_attention)(self.num_heads, self.num_kv_heads, dim)
        self.is_deferred = scoring is Scoring.DEFERRED

    def forward(
        self, op: Any, tokens: Tokens, x: ir.Value, past: Sequence[ir.Value], score_inputs: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """-> [B,S,C], or [B,R,C] of the wanted rows; present key and value, and when scored, what visual tokens
        received, or the scored rows' queries.
        """
        query, key = self.q_proj(op, x), self.k_proj(op, x)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = per_head(op, query, self.q_norm), per_head(op, key, self.k_norm)
        query = op.RotaryEmbedding(query, tokens.cos, tokens.sin, num_heads=self.num_heads)
        key = op.RotaryEmbedding(key, tokens.cos, tokens.sin, num_heads=self.num_kv_heads)
        lengths = tokens.past_length, tokens.kv_length
        inputs = (*past, *lengths, *tokens.shared_inputs, *(() if self.is_deferred else score_inputs))
        output, *others = op.call(self.function, query, key, self.v_proj(op, x), *inputs)
        if self.is_deferred:
            (score_row,) = score_inputs
            others.append(take(op, query, score_row))
        attended = take(op, like(output, query), tokens.wanted)
        return all_reduce(op, self.o_proj(op, attended), self.shard), others


class MLP(nn.Module):
    """[B,S,C] -> [B,S,C]: down(silu(gate(x)) * up(x))"""

    def __init__(self, config: LanguageConfig, shard: Shard) -> None:
        super().__init__()
        part = shard.part(config.intermediate_size, "intermediate_size")
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, rows=part)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rows=part)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, columns=part)
        self.shard = shard

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        gate = self.gate_proj(op, x)
        gated = op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.up_proj(op, x))
        return all_reduce(op, self.down_proj(op, gated), self.shard)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: LanguageConfig, shard: Shard, scoring: Scoring, lowering: Lowering) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, shard, scoring, lowering)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, shard)

    def forward(
        self, op: Any, tokens: Tokens, past: Sequence[ir.Value], score_inputs: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        attended, others = self.self_attn(op, tokens, self.input_layernorm(op, tokens.hidden), past, score_inputs)
        hidden = op.Add(tokens.residual, attended)
        return op.Add(hidden, self.mlp(op, self.post_attention_layernorm(op, hidden))), others


def per_head(op: Any, x: ir.Value, norm: RMSNorm) -> ir.Value:
    """[B,S,H*D] -> [B,S,H*D], each head normalised by itself."""
    heads = op.Reshape(x, [0, 0, -1, *norm.weight.stored])
    return op.Reshape(norm(op, heads), [0, 0, dims(x)[-1]])


def take(op: Any, x: ir.Value, rows: ir.Value | None) -> ir.Value:
    """[B,S,C], [B,R] -> [B,R,C]; x itself where no rows are named."""
    return x if rows is None else op.GatherND(x, op.Unsqueeze(rows, [-1]), batch_dims=1)


def prune(
    op: Any, function: ir.Function, rows: tuple[ir.Value, ir.Value, ir.Value], keep_index: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """[B,S,N] each, [B,S'] -> [B,S',N] each."""
    hidden, cos, sin = op.call(function, *rows, keep_index)
    for value, before in zip((hidden, cos, sin), rows, strict=True):
        shaped(value, [*dims(keep_index), dims(before)[-1]], before)
    return hidden, cos, sin


class Decoder(nn.Module):
    """Embedding, layers with prune points between them, final norm."""

    def __init__(
        self,
        config: LanguageConfig,
        shard: Shard,
        prune_layers: Sequence[int],
        scoring: Scoring,
        lowering: Lowering,
    ) -> None:
        super().__init__("model")
        self.shard, self.prune_layers, self.scoring = shard, prune_layers, scoring
        self.function, self.shared_inputs = lowering.prune_visual_tokens(), lowering.shared_inputs
        self.embed_tokens = Embedding(config, shard)
        self.layers = nn.ModuleList([DecoderLayer(config, shard, scoring, lowering) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, op: Any, inputs: dict[str, ir.Value]) -> tuple[ir.Value, dict[str, ir.Value]]:
        """-> [B,R,C] hidden states of the wanted rows, and the other outputs by name.

        Rows that a prune point drops, and those that are not wanted, end with the attention of the layer before it, and
        of the last one: no later layer reads more of them than their keys and values there.
        """
        shared_inputs: dict[int, Sequence[ir.Value]] = {}
        score_inputs: dict[int, list[ir.Value]] = {}
        hidden = self.embed_tokens(op, inputs[names.INPUT_IDS], inputs[names.VISUAL_EMBEDS], inputs[names.VISUAL_SLOT])
        cos, sin = (cast(op, inputs[name], hidden.dtype) for name in (names.ROPE_COS, names.ROPE_SIN))
        outputs: dict[str, ir.Value] = {}
        scored = []
        for index, layer in enumerate(self.layers):
            segment = segment_of(index, self.prune_layers)
            wanted, going_on = None, (hidden, cos, sin)
            if index + 1 in self.prune_layers:
                wanted = inputs[names.keep_index(segment + 1)]
                going_on = prune(op, self.function, going_on, wanted)
            elif index == len(self.layers) - 1:
                wanted = inputs[names.LOGIT_INDEX]
                going_on = take(op, hidden, wanted), cos, sin
            past = [inputs[name] for name in names.past_kv(index)]
            lengths = inputs[names.past_length(segment)], inputs[names.kv_length(segment)]
            if segment not in shared_inputs and self.shared_inputs is not None:
                shared_inputs[segment] = self.shared_inputs(op, hidden, lengths[0])
            shared = shared_inputs.get(segment, ())
            tokens = Tokens(hidden, cos, sin, *lengths, shared, wanted, residual=going_on[0])
            if segment not in score_inputs:
                score_inputs[segment] = self.score_inputs(op, inputs, tokens, past[0])
            hidden, (present_key, present_value, *scores) = layer(op, tokens, past, score_inputs[segment])
            cos, sin = going_on[1:]
            outputs.update(zip(names.present_kv(index), (present_key, present_value), strict=True))
            scored += scores
        match self.scoring:
            case Scoring.IN_ENGINE:
                accumulator, (batch, columns) = inputs[names.VISUAL_SCORES], dims(inputs[names.VISUAL_COLUMN])
                for received in scored:
                    shaped(received, [batch, 1, columns], accumulator)
                # Each rank has seen its own heads only.
                total = all_reduce(op, like(op.Concat(*scored, axis=1), accumulator), self.shard)
                outputs[names.VISUAL_SCORES_OUT] = op.Add(accumulator, total)
            case Scoring.DEFERRED:
                outputs[names.SCORED_QUERY] = op.Concat(*scored, axis=2)
        return self.norm(op, hidden), outputs

    def score_inputs(self, op: Any, inputs: dict[str, ir.Value], tokens: Tokens, past_key: ir.Value) -> list[ir.Value]:
        """Of the layers of one segment."""
        if self.scoring is Scoring.OFF:
            return []
        score_row = inputs[names.SCORE_ROW]
        if self.scoring is Scoring.DEFERRED:
            return [score_row]
        position = op.Add(op.Cast(score_row, to=ir.DataType.INT32), op.Unsqueeze(tokens.past_length, [1]))
        position.shape = dims(score_row)
        mask = causal_score_mask(op, position, past_key)
        return [score_row, inputs[names.SCORE_WEIGHT], mask, inputs[names.VISUAL_COLUMN]]


class LanguageModel(nn.Module):
    """The whole engine: decoder and head."""

    def __init__(
        self,
        config: LanguageConfig,
        shard: Shard,
        prune_layers: Sequence[int],
        scoring: Scoring,
        lowering: Lowering,
    ) -> None:
        super().__init__("")
        self.model = Decoder(config, shard, prune_layers, scoring, lowering)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, rows=shard.vocabulary(config.vocab_size))

    def forward(self, op: Any, inputs: dict[str, ir.Value]) -> dict[str, ir.Value]:
        hidden, outputs = self.model(op, inputs)
        logits = cast(op, self.lm_head(op, hidden), ir.DataType.FLOAT)
        return {names.LOGITS: logits, **outputs}


def language_graph(
    config: LanguageConfig,
    limits: Limits,
    prune_layers: Sequence[int] = (),
    scores: bool = False,
    shard: Shard = Shard(),  # noqa: B008 (frozen)
    lowering: Lowering = ONNXRUNTIME,
    dtype: str = "float32",
) -> ir.Model:
    """Declare the graph of a language engine; its parameters carry no data yet. dtype: of them and of activations."""
    scoring = lowering.scoring(scores)
    bound = language_bindings(config, limits, prune_layers, scoring, shard, dtype)
    builder, inputs = declare("language", bound, lowering.opset)
    model = LanguageModel(config, shard, prune_layers, scoring, lowering)
    set_dtype(model, dtype)
    graph = finish(builder, bound, model(builder.op, inputs))
    if lowering.all_reduce is not None and shard.world_size > 1:
        body = lowering.all_reduce(shard.world_size)
        graph.functions[body.identifier()] = body
    return graph
