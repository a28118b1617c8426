"""A graph cut at its all-reduces against the sum over ranks, run stage by stage for every rank at once."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnxscript import GraphBuilder

from engine.bindings import partial_sum
from engine.plugins.all_reduce import NAME, cut, reference
from engine.plugins.function import DOMAIN, OPSET
from tests.tolerance import TOLERANCE

SHAPE = ["rows", 3]


def make_model(rank: int) -> ir.Model:
    """y = sum((x + early) * rank), z = sum(y * x) + early, where early = x * (rank + 1)."""
    graph = ir.Graph([], [], nodes=[], name="sums", opset_imports={**OPSET, DOMAIN: 1})
    builder = GraphBuilder(graph)
    op = builder.op
    x = builder.input("x", dtype=ir.DataType.FLOAT, shape=SHAPE)
    early = op.Mul(x, float(rank + 1))
    y = add_all_reduce(op, op.Mul(op.Add(x, early), float(rank)))
    z = op.Add(add_all_reduce(op, op.Mul(y, x)), early)
    for name, value in (("y", y), ("z", z)):
        copy = op.Identity(value)
        copy.type, copy.shape = x.type, x.shape
        builder.add_output(copy, name)
    return ir.Model(graph, ir_version=11)


def add_all_reduce(op: object, x: ir.Value) -> ir.Value:
    total = getattr(op, NAME)(x, _domain=DOMAIN)
    total.type, total.shape = x.type, x.shape
    return total


def run_ranks(models: Sequence[ir.Model], x: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All values that stages have written, by rank."""
    values = [{"x": x} for _ in models]
    for index, stages in enumerate(zip(*map(cut, models), strict=True)):
        for stage, held in zip(stages, values, strict=True):
            session = onnxruntime.InferenceSession(ir.to_proto(stage).SerializeToString())
            names = [value.name for value in session.get_outputs()]
            given = {value.name: held[value.name] for value in session.get_inputs()}
            held |= zip(names, session.run(names, given), strict=True)
        if (name := partial_sum(index)) in values[0]:
            for held, total in zip(values, reference([held[name] for held in values]), strict=True):
                held[name] = total
    return values


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_stages_compute_the_graph(world_size: int) -> None:
    x = np.random.default_rng(0).standard_normal((7, 3), dtype=np.float32)
    wide = x.astype(np.float64)
    y = sum((wide + wide * (rank + 1)) * rank for rank in range(world_size))
    z = y * wide * world_size
    for rank, held in enumerate(run_ranks([make_model(rank) for rank in range(world_size)], x)):
        assert_allclose(held["y"], y, **TOLERANCE["op"])
        assert_allclose(held["z"], z + wide * (rank + 1), **TOLERANCE["op"])


def test_a_graph_without_all_reduce_stays_whole() -> None:
    graph = ir.Graph([], [], nodes=[], name="whole", opset_imports={**OPSET, DOMAIN: 1})
    builder = GraphBuilder(graph)
    x = builder.input("x", dtype=ir.DataType.FLOAT, shape=SHAPE)
    builder.add_output(builder.op.Neg(x), "y")
    model = ir.Model(graph, ir_version=11)
    assert cut(model) == [model]


def test_reference_gives_every_rank_the_sum() -> None:
    parts = [np.array([1.0, -2.0], np.float32), np.array([0.5, 4.0], np.float32)]
    for total in reference(parts):
        assert_array_equal(total, [1.5, 2.0])
        assert total.dtype == np.float32
