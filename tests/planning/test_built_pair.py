"""A plan against what was built and what ran: weight files, KV buffers, activations, whole and by rank."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engine.bindings import VISUAL_FEATURES
from engine.build.builder import build_pair
from engine.build.calibrate import TEXT_TOKENS, language_inputs, vision_inputs
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.targets.onnxruntime_evaluate import interpret, load_initializer, run_node
from engine.build.targets.tensorrt_weights import write_weights
from engine.build.vision import vision_graph
from engine.build.weight_file import WeightFile
from engine.build.weights import WeightReader
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig, default_prune_layers
from engine.dims import Limits
from engine.families import family_of
from engine.parallel import Shard
from engine.planning.graph_cost import peak_activation_bytes
from engine.planning.pair_plan import PairPlan, plan_pair, read_config
from engine.planning.plan_config import PlanConfig
from engine.planning.storage import storage_of
from engine.planning.workload import Workload
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.runtime.executor import HostBuffers
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Need
from engine.runtime.slots import Slot, Slots
from engine.target import Precision, Target
from tools.scenes import make_scene

FP32 = storage_of(Target.ONNXRUNTIME, Precision.FP32)
LIMITS = Limits(1024, 1, 13)


def plan_for(pair: Path, world_size: int = 1, guidance: GuidanceConfig = GuidanceConfig()) -> PairPlan:  # noqa: B008
    return plan_pair(
        PlanConfig(pair / "small", pair / "large", Target.ONNXRUNTIME, Precision.FP32, world_size, guidance)
    )


def test_weight_files_have_the_planned_sizes(pair: Path, engine_directory: Path) -> None:
    plan = plan_for(pair)
    for role, model in (("small", plan.small), ("large", plan.large)):
        assert (engine_directory / role / "rank0" / "language.weights").stat().st_size == model.language_bytes
        assert (engine_directory / role / "vision.weights").stat().st_size == model.vision_bytes


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_has_the_planned_sizes(pair: Path, world_size: int, tmp_path: Path) -> None:
    """Weight files and KV buffers. Two key-value heads: at four ranks each is held twice."""
    plan = plan_for(pair, world_size).large
    out = tmp_path / "engine"
    build_pair(BuildConfig(pair / "small", pair / "large", out, max_tokens=1024, world_size=world_size))
    for rank in range(world_size):
        assert (out / "large" / f"rank{rank}" / "language.weights").stat().st_size == plan.language_bytes
    workload, config, points = Workload(7, 2, 30, 9), plan.config.language, (1, 2, 3, 4)
    full, kept = 7 * 16 + 30 + 9, 22 + 30 + 9
    heads = len(Shard(0, world_size).kv_heads(config.num_kv_heads))
    assert sum(plan.kv_bytes(workload)) == 2 * Slots(HostBuffers(), config, heads, points, 2).nbytes(
        Need((full, full, kept, kept, kept))
    )


@pytest.mark.parametrize("precision", Target.TENSORRT.precisions())
def test_weights_for_tensorrt_have_the_planned_size(pair: Path, tmp_path: Path, precision: Precision) -> None:
    """To the byte where nothing is quantized; else but for the scales of narrow matrices."""
    plan = plan_pair(PlanConfig(pair / "small", pair / "large", Target.TENSORRT, precision)).large
    config, (family, _) = read_config(pair / "large"), family_of(pair / "large")
    checkpoint = Checkpoint(pair / "large")
    reader = WeightReader(checkpoint, family.language_sources(config, checkpoint.names()))
    graph = language_graph(config.language, LIMITS, lowering=TENSORRT_RTX, dtype=Target.TENSORRT.activations(precision))
    with WeightFile(tmp_path / "weights") as file:
        write_weights(graph, reader, file, precision, lambda fraction: None)
    is_quantized = precision not in (Precision.BF16, Precision.FP16)
    size = (tmp_path / "weights").stat().st_size
    assert size == pytest.approx(plan.language_bytes, rel=0.08 if is_quantized else 0)


@pytest.mark.parametrize(
    "guidance",
    [
        GuidanceConfig(),
        GuidanceConfig(prune_layer=0, retention_ratio=0.3),
        GuidanceConfig(prune_layer=4, retention_ratio=0.01),
        GuidanceConfig(average_retention=0.35),
        GuidanceConfig(enabled=False),
    ],
)
def test_kv_buffers_have_the_planned_sizes(
    pair: Path, engine_directory: Path, guidance: GuidanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_slot = [], Slots.open

    def recorded(slots: Slots, number: int, need: Need) -> Slot:
        opened.append(slots.nbytes(need))
        return open_slot(slots, number, need)

    monkeypatch.setattr(Slots, "open", recorded)
    picture, _ = make_scene(seed=1, width=330, height=220, objects=5)
    answer = SglPipeline.load(engine_directory, threads=1).answer(
        picture,
        "What is red?",
        guidance=guidance,
        exit=ExitConfig(exit_threshold=2),
        sampling=SamplingConfig(max_new_tokens=7),
    )
    plan = plan_for(pair, guidance=guidance)
    tiles = answer.visual_tokens // plan.large.config.vision.tokens_per_tile()
    workload = Workload(tiles, 1, answer.prompt_tokens - answer.visual_tokens, 7)
    assert opened[-1] == sum(plan.large.kv_bytes(workload))
    below, above = plan.large.kv_bytes(workload)
    layers, point = plan.large.config.language.num_layers, 10 if plan.guidance is None else plan.guidance.prune_layer
    assert point is not None
    per_token = 2 * 2 * 16 * 4
    assert below == point * workload.context(plan.large.config) * per_token
    kept = answer.num_kept() + answer.prompt_tokens - answer.visual_tokens + 7
    assert above == (layers - point) * kept * per_token


def test_activations_are_those_of_a_run_node_by_node(pair: Path) -> None:
    """Both graphs of the large model run with each value kept until its last use: the bytes that are then alive."""
    family, published = family_of(pair / "large")
    config = family.read_config(pair / "large", published)
    checkpoint = Checkpoint(pair / "large")
    points = default_prune_layers(config.language.num_layers)
    graph = vision_graph(config.vision, LIMITS)
    inputs = vision_inputs(family, config)
    reader = WeightReader(checkpoint, family.vision_sources(config, checkpoint.names()))
    features, peak = run_measured(graph, reader, inputs, VISUAL_FEATURES)
    tiles = len(features)
    assert peak_activation_bytes(graph, {"tiles": tiles}, FP32) == pytest.approx(peak, rel=0.01)

    features = features.reshape(-1, features.shape[-1])
    graph = language_graph(config.language, LIMITS, points)
    inputs = language_inputs(config.language, features, len(points))
    reader = WeightReader(checkpoint, family.language_sources(config, checkpoint.names()))
    _, peak = run_measured(graph, reader, inputs, "logits")
    tokens = len(features) + 2 * TEXT_TOKENS
    sizes = {"batch": 1, "sequence": tokens, "visual": len(features), "logit_rows": TEXT_TOKENS}
    for segment in range(len(points) + 1):
        sizes |= {f"kept_{segment}": tokens, f"cache_{segment}": tokens}
    assert peak_activation_bytes(graph, sizes, FP32) == pytest.approx(peak, rel=0.01)


def run_measured(
    graph: ir.Model, reader: WeightReader, inputs: dict[str, np.ndarray], output: str
) -> tuple[np.ndarray, int]:
    """An output, and the most bytes of intermediate values that were alive at once."""
    live = peak = 0
    outputs = set(graph.graph.outputs)

    def forget(size: int) -> None:
        nonlocal live
        live -= size

    def step(node: ir.Node, arguments: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        nonlocal live, peak
        arrays = run_node(node, arguments, graph)
        for value, array in zip(node.outputs, arrays, strict=True):
            if value not in outputs:
                live += array.nbytes
                weakref.finalize(array, forget, array.nbytes)
        peak = max(peak, live)
        return arrays

    wanted = next(value for value in graph.graph.outputs if value.name == output)
    result = interpret(graph.graph, inputs, wanted, lambda value: load_initializer(value, reader), step)
    return result, peak
