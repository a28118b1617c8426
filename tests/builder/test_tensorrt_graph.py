"""The language graph as TensorRT gets it, run by ONNX's reference, against transformers and our CPU engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.testing import assert_allclose
from onnx.reference.op_run import OpRun

from engine.bindings import Scoring
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.scoring import scoring_graph
from engine.build.targets.tensorrt_weights import HEAD, write_weights
from engine.build.weight_file import WeightFile
from engine.build.weights import WeightReader
from engine.dims import Limits
from engine.families import family_of
from engine.plugins.lowering import Lowering
from engine.plugins.targets.tensorrt import TENSORRT
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.runtime.language import LanguageModel
from engine.runtime.prompt import PromptTokens, Pruning
from engine.target import Precision
from tests.oracle import Pair, build_pair
from tests.plugins.simulated_tensorrt import plugin_ops
from tests.plugins.tensorrt_stub import missing
from tests.prefilled import NOTHING, Prefilled
from tests.reference_executor import ReferenceExecutor
from tests.tolerance import TOLERANCE

LIMITS = Limits(max_tokens=64, max_batch=2, max_tiles=4, planned=True)
PRUNE_LAYERS = (1, 3)
WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6}
"""Inputs of matrices that blocks of 32 divide."""
ANSWER = np.array([5, 17, 99])


@dataclass(frozen=True)
class Twins:
    """The same checkpoint in our CPU engine, with transformers beside it, and on disk."""

    directory: Path
    pair: Pair


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    directory = tmp_path_factory.mktemp("checkpoint")
    return Twins(directory, build_pair(directory, request.param, PRUNE_LAYERS, scores=True, **WIDE))


def lower(
    twins: Twins,
    precision: Precision,
    path: Path,
    lowering: Lowering = TENSORRT_RTX,
    plugins: Sequence[type[OpRun]] = (),
) -> LanguageModel:
    """The engine of the lowered graph in float32, so that what differs is the lowering and the stored weights."""
    family, published = family_of(twins.directory)
    config = family.read_config(twins.directory, published)
    checkpoint = Checkpoint(twins.directory)
    reader = WeightReader(checkpoint, family.language_sources(config, checkpoint.names()))
    graph = language_graph(config.language, LIMITS, PRUNE_LAYERS, scores=True, lowering=lowering)
    with WeightFile(path / "weights") as file:
        write_weights(graph, reader, file, precision, lambda fraction: None)
    ir.external_data.load_to_model(graph)
    executor, scoring = ReferenceExecutor(graph, plugins), None
    if lowering.scoring(True) is Scoring.DEFERRED:
        # As the model below, which knows of no plan.
        limits = replace(LIMITS, planned=False)
        scoring = ReferenceExecutor(scoring_graph(config.language, limits, PRUNE_LAYERS, lowering=lowering))
    return LanguageModel(executor, config.language, PRUNE_LAYERS, scores=True, scoring=scoring)


def make_prompt() -> PromptTokens:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, WIDE["hidden_size"]), dtype=np.float32) * 0.3
    return PromptTokens(rng.integers(0, 131, 23), np.arange(4, 16), features)


SCORED = np.arange(16, 23)
PRUNED = Pruning(3, np.array([0, 1, 2, 3, 6, 11, 16, 17, 18, 19, 20, 21, 22]))


def answer(model: LanguageModel, pruning: Pruning | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits after the prompt and each answer token, and what visual tokens received unless it is pruned."""
    scored = None if pruning else SCORED
    one = Prefilled(model, make_prompt(), len(ANSWER), pruning, scored, PRUNE_LAYERS)
    logits = one.decode(ANSWER, scored=pruning is None)
    scores = None if pruning else one.visual_scores()
    one.close()
    return logits, scores


def test_prefill_decode_and_scores(twins: Twins, tmp_path: Path) -> None:
    model = lower(twins, Precision.BF16, tmp_path)
    (logits, scores), (expected, expected_scores) = (answer(engine) for engine in (model, twins.pair.engine))
    assert_allclose(logits, expected, **TOLERANCE["fp32"])
    assert scores is not None and expected_scores is not None
    assert_allclose(scores, expected_scores, **TOLERANCE["scores"])
    assert (scores > 0).all()


def test_pruned(twins: Twins, tmp_path: Path) -> None:
    model = lower(twins, Precision.BF16, tmp_path)
    (logits, _), (expected, _) = (answer(engine, PRUNED) for engine in (model, twins.pair.engine))
    assert_allclose(logits, expected, **TOLERANCE["fp32"])


def test_scoring_pass_over_a_cached_prefix(twins: Twins, tmp_path: Path) -> None:
    kept = np.array([1, 7])
    results = []
    for engine in (lower(twins, Precision.BF16, tmp_path), twins.pair.engine):
        one = Prefilled(engine, make_prompt(), len(ANSWER), scored=NOTHING, prune_layers=PRUNE_LAYERS)
        results.append(one.score(kept, ANSWER))
        one.close()
    assert_allclose(results[0], results[1], **TOLERANCE["fp32"])


def test_with_our_kernels_as_plugins(twins: Twins, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the compiler of the kernels is not installed")
    if reason := missing():
        pytest.skip(reason)
    with plugin_ops(tmp_path) as plugins:
        model = lower(twins, Precision.BF16, tmp_path, TENSORRT, plugins)
        for pruning in (None, PRUNED):
            (logits, scores), (expected, expected_scores) = (answer(x, pruning) for x in (model, twins.pair.engine))
            assert_allclose(logits, expected, **TOLERANCE["fp32"])
            if scores is not None and expected_scores is not None:
                assert_allclose(scores, expected_scores, **TOLERANCE["scores"])


@pytest.mark.parametrize(
    ("precision", "stored", "least"),
    [(Precision.INT8, "INT8", 0.999), (Precision.FP8, "FLOAT8E4M3FN", 0.99), (Precision.INT4, "INT4", 0.95)],
)
def test_quantized_weights(twins: Twins, tmp_path: Path, precision: Precision, stored: str, least: float) -> None:
    """Random weights: logits of prompt and answer stay in float32's direction; every matrix is stored in few bits."""
    model = lower(twins, precision, tmp_path)
    (logits, _), (expected, _) = (answer(engine) for engine in (model, twins.pair.engine))
    cosine = (logits * expected).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    assert least < cosine.min() < 1 - 1e-7
    graph = model.executor._evaluator.proto_.graph
    types = {tensor.name: ir.DataType(tensor.data_type).name for tensor in graph.initializer}
    matrices = {name: kind for name, kind in types.items() if name.endswith(".weight.data")}
    assert len(matrices) == 5 * 4 + 1, "one for queries, keys and values, one for gate and up"
    assert set(matrices.values()) == {stored, "INT8"} if precision is Precision.INT4 else {stored}
    assert matrices[f"{HEAD}.data"] == ("INT8" if precision is Precision.INT4 else stored)
