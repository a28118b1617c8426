"""The scoring engine of a language engine that defers its scores: adds up what the visual tokens of each layer receive.

Shapes: B requests, R scored rows, T cache length, V visual tokens.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engine import bindings as names
from engine.bindings import scoring_bindings, segment_of
from engine.build.graph import declare, finish
from engine.build.layers import dims, like, shaped
from engine.dims import Limits
from engine.model_config import LanguageConfig
from engine.parallel import Shard
from engine.plugins.lowering import Lowering
from engine.plugins.received_attention.score_mask import causal_score_mask
from engine.plugins.targets.onnxruntime import ONNXRUNTIME


def scoring_graph(
    config: LanguageConfig,
    limits: Limits,
    prune_layers: Sequence[int] = (),
    shard: Shard = Shard(),  # noqa: B008 (frozen)
    lowering: Lowering = ONNXRUNTIME,
    dtype: str = "float32",
) -> ir.Model:
    """Declare the graph, for any `Limits.scored_layers` of the layers; it has no parameters.

    Ranks do not sum in it: each adds up what its own heads paid.
    """
    assert lowering.received_attention is not None, "the target's language engine adds up its scores itself"
    heads, kv_heads = shard.part(config.num_heads, "num_heads"), shard.kv_heads(config.num_kv_heads)
    function = lowering.received_attention(len(heads), len(kv_heads), config.head_dim)
    bound = scoring_bindings(config, limits, prune_layers, shard, dtype)
    builder, inputs = declare("scoring", bound, lowering.opset)
    op, total = builder.op, inputs[names.VISUAL_SCORES]
    layers, columns = limits.scored_layers(config.num_layers), inputs[names.VISUAL_COLUMN]
    query = inputs[names.SCORED_QUERY]
    queries = [query] if layers == 1 else op.Split(query, axis=2, num_outputs=layers, _outputs=layers)
    masks: dict[int, ir.Value] = {}
    received = []
    for layer, rows in enumerate(queries):
        segment, keys = segment_of(layer, prune_layers), inputs[names.key_cache(layer)]
        if segment not in masks:
            masks[segment] = causal_score_mask(op, inputs[names.SCORE_POSITION], keys)
        one = op.call(function, rows, keys, masks[segment], inputs[names.SCORE_WEIGHT], columns)
        received.append(op.Unsqueeze(shaped(one, dims(columns), total), [0]))
    return finish(builder, bound, {names.VISUAL_SCORES_OUT: op.Add(total, like(op.Concat(*received, axis=0), total))})
