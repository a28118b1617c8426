"""Scores in graphs: what the language graph needs for them, and the graph of a scoring engine of its own.

Shapes: B requests, R scored rows, T cache length, V visual tokens, L layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from engine import bindings as names
from engine.bindings import scoring_bindings, segment_of
from engine.build.graph import declare, finish
from engine.build.layers import dims, like, shaped
from engine.dims import Limits
from engine.model_config import LanguageConfig
from engine.parallel import Mapping
from engine.plugins.lowering import ONNXRUNTIME, Lowering
from engine.plugins.received_attention import MASKED


def causal_score_mask(op: Any, position: ir.Value, past_key: ir.Value) -> ir.Value:
    """int32 [B,R], [B,Hkv,T,D] -> [B,R,T]: `score_mask` of the ops with scores, once for all layers of a segment."""
    cache = op.Squeeze(op.Cast(op.Shape(past_key, start=2, end=3), to=ir.DataType.INT32))
    visible = op.LessOrEqual(op.Range(0, cache, 1), op.Unsqueeze(position, [2]))
    mask = op.Where(visible, 0.0, MASKED)
    mask.shape = ir.Shape([*dims(position), dims(past_key)[2]])
    return mask


def add_received(
    op: Any,
    inputs: dict[str, ir.Value],
    received: Sequence[ir.Value],
    total: Callable[[ir.Value], ir.Value] = lambda received: received,
) -> ir.Value:
    """[B,1,V] of each layer -> [B,L,V], added to the accumulator. total: what is to happen with them before."""
    accumulator, (batch, columns) = inputs[names.VISUAL_SCORES], dims(inputs[names.VISUAL_COLUMN])
    for layer in received:
        shaped(layer, [batch, 1, columns], accumulator)
    return op.Add(accumulator, total(like(op.Concat(*received, axis=1), accumulator)))


def scoring_graph(
    config: LanguageConfig,
    limits: Limits,
    prune_layers: Sequence[int] = (),
    mapping: Mapping = Mapping(),  # noqa: B008 (frozen)
    lowering: Lowering = ONNXRUNTIME,
    dtype: str = "float32",
) -> ir.Model:
    """Declare the graph of the scoring engine beside one rank's language engine; it has no parameters.

    Ranks do not sum in it: each adds up what its own heads paid.
    """
    assert lowering.received_attention is not None, "the target's language engine adds up its scores itself"
    heads, kv_heads = mapping.shard(config.num_heads, "num_heads"), mapping.kv_heads(config.num_kv_heads)
    function = lowering.received_attention(len(heads), len(kv_heads), config.head_dim)
    bound = scoring_bindings(config, limits, prune_layers, mapping, dtype)
    builder, inputs = declare("scoring", bound, lowering.opset)
    op = builder.op
    queries = op.Split(inputs[names.SCORED_QUERY], axis=2, num_outputs=config.num_layers, _outputs=config.num_layers)
    masks: dict[int, ir.Value] = {}
    received = []
    for layer, query in enumerate([queries] if config.num_layers == 1 else queries):
        segment, (key, _) = segment_of(layer, prune_layers), names.past_kv(layer)
        if segment not in masks:
            masks[segment] = causal_score_mask(op, inputs[names.SCORE_POSITION], inputs[key])
        received.append(
            op.call(
                function, query, inputs[key], masks[segment], inputs[names.SCORE_WEIGHT], inputs[names.VISUAL_COLUMN]
            )
        )
    return finish(builder, bound, {names.VISUAL_SCORES_OUT: add_received(op, inputs, received)})
