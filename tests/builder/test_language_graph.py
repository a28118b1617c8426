"""The language graph of every published size, declared and shape-checked without weights, whole and sharded."""

import math

import onnx_ir as ir
import pytest

from engine.bindings import Bindings, Scoring, language_bindings, partial_sum
from engine.build.language import language_graph
from engine.build.weights import parameters
from engine.config import default_prune_layers
from engine.dims import Limits
from engine.errors import EngineError
from engine.families import by_name
from engine.model_config import LanguageConfig, RopeConfig
from engine.parallel import Shard, check_shards
from engine.plugins.all_reduce import NAME, cut
from tests.families.fixtures import SIZES, published, read_size
from tools.random_checkpoint import tensor_shapes

LIMITS = Limits(max_tokens=8192, max_batch=8, max_tiles=13)
WORLD_SIZES = (1, 2, 4, 8)
REFUSED = {("1b", 4): "num_heads 14", ("1b", 8): "num_heads 14"}


def expected_parameters(config: LanguageConfig) -> int:
    """Parameters of the whole model, head and embedding counted apart."""
    c, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = c * (2 * q + 2 * kv) + (q + 2 * kv if config.qkv_bias else 0)
    layer = attention + 3 * c * config.intermediate_size + 2 * c
    return config.num_layers * layer + 2 * config.vocab_size * c + c


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_world_size(size: str, world_size: int) -> None:
    config = read_size(size).language
    points = default_prune_layers(config.num_layers)
    shards = [Shard(rank, world_size) for rank in range(world_size)]
    if (size, world_size) in REFUSED:
        with pytest.raises(EngineError, match=f"the model: {REFUSED[size, world_size]} does not divide by world_size"):
            check_shards(config, shards[0], "the model")
        with pytest.raises(EngineError, match=REFUSED[size, world_size]):
            language_graph(config, LIMITS, points, shard=shards[0])
        return
    check_shards(config, shards[0], "the model")
    total = 0
    for shard in (shards[0], shards[-1]):
        model = language_graph(config, LIMITS, points, scores=shard.rank == 0, shard=shard)
        scoring = Scoring.DEFERRED if shard.rank == 0 else Scoring.OFF
        bound = language_bindings(config, LIMITS, points, scoring, shard)
        assert [value.name for value in model.graph.inputs] == [binding.name for binding in bound.inputs]
        assert [value.name for value in model.graph.outputs] == [binding.name for binding in bound.outputs]
        check_products(model)
        if world_size == 2 and shard.rank == 1:
            check_stages(model, bound)
        total = sum(math.prod(weight.shape) for _, weight in parameters(model))
    if world_size == 1:
        assert total == expected_parameters(config)
    else:
        assert total > expected_parameters(config) / world_size


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_has_a_source(size: str) -> None:
    config = read_size(size)
    sources = by_name(config.family).language_sources(config, tensor_shapes(published(size)))
    model = language_graph(config.language, LIMITS)
    assert {name for name, _ in parameters(model)} == set(sources)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "world_size"), [(8, 8, 2), (8, 4, 4), (8, 2, 4), (14, 2, 2)])
def test_shards_cover_the_model_once(num_heads: int, num_kv_heads: int, world_size: int) -> None:
    """Together the ranks hold every row and column; only KV heads are held more than once, when there are too few."""
    config = LanguageConfig(num_heads * 8, 1, num_heads, num_kv_heads, 8, 96, 101, 1e-6, RopeConfig(1e4, 64), True)
    held: dict[str, set[tuple[range | None, range | None]]] = {}
    for rank in range(world_size):
        for name, weight in parameters(language_graph(config, LIMITS, shard=Shard(rank, world_size))):
            held.setdefault(name, set()).add((weight.part.rows, weight.part.columns))
            for axis, part in enumerate((weight.part.rows, weight.part.columns)):
                if part is not None:
                    covered = {i for rows in held[name] if rows[axis] is not None for i in rows[axis] or ()}
                    if rank == world_size - 1:
                        assert covered >= set(range(weight.stored[axis])), name


def check_stages(model: ir.Model, bound: Bindings) -> None:
    """Cut at the all-reduces, every stage reads what an earlier one has written or what the bindings name."""
    reduced = sum(node.op_type == NAME for node in model.graph)
    stages = cut(model)
    assert len(stages) == reduced + 1
    written = {binding.name for binding in bound.inputs}
    for index, stage in enumerate(stages):
        assert {value.name for value in stage.graph.inputs} <= written
        outputs = {value.name for value in stage.graph.outputs}
        assert not outputs & written
        assert index == reduced or partial_sum(index) in outputs
        written |= {name for name in outputs if name is not None}
    assert {binding.name for binding in bound.outputs} <= written


def check_products(model: ir.Model) -> None:
    """The shapes of all products are known from the declaration, and their inner dimensions match."""
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert products
    for node in products:
        left, right = (value.shape for value in node.inputs if value is not None)
        assert left is not None, node
        assert right is not None, node
        assert isinstance(left[-1], int), node
        assert left[-1] == right[-2], node
