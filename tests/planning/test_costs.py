"""What graphs cost against formulas written down here, on one rank and on several."""

from dataclasses import replace

import pytest

from engine.config import GuidanceConfig
from engine.families import published
from engine.parallel import Shard
from engine.planning.chip import Chip
from engine.planning.cost import Asked, Costs
from engine.planning.model_plan import ModelPlan
from engine.planning.pair_plan import read_config
from engine.planning.roofline import Latency, call_seconds, latency, sent_bytes
from engine.planning.storage import storage_of
from engine.planning.workload import Workload
from engine.target import Precision, Target

BF16 = storage_of(Target.TENSORRT, Precision.BF16)
CONFIG = read_config(published("InternVL2-2B"))
C, LAYERS, INNER, VOCABULARY, KV = 2048, 24, 8192, 92553, 8 * 128
BEHIND_ATTENTION = C * C + 3 * C * INNER
"""Of one layer; the last layer's are multiplied by the wanted rows only."""
MATRICES = LAYERS * (2 * C * C + 2 * C * KV + 3 * C * INNER)
WORKLOAD = Workload(tiles=3, batch=2, text_tokens=40, new_tokens=10)
PROMPT = 3 * 256 + 40


def make_plan(world_size: int = 1, guidance: GuidanceConfig | None = None, points: tuple[int, ...] = ()) -> ModelPlan:
    return ModelPlan(CONFIG, BF16, Shard(0, world_size), points, guidance)


def test_decode_reads_the_weights_and_the_cache_once_and_multiplies_by_each_weight() -> None:
    call = make_plan().decode(WORKLOAD)
    tokens = PROMPT + 5
    weights = MATRICES + C * VOCABULARY + (2 * LAYERS + 1) * C
    assert call.bytes == 2 * weights + 2 * 2 * 2 * LAYERS * KV * tokens
    assert call.operations == 2 * 2 * (MATRICES + C * VOCABULARY) + 2 * 4 * LAYERS * C * tokens
    assert call.reduced == ()


def test_prefill_attends_causally_and_makes_one_row_of_logits() -> None:
    call = make_plan().prefill(WORKLOAD)
    pairs = PROMPT * (PROMPT + 1) // 2
    matrices = MATRICES * PROMPT - BEHIND_ATTENTION * (PROMPT - 1)
    assert call.operations == 2 * (2 * (matrices + C * VOCABULARY) + 4 * LAYERS * C * pairs)


def test_vision_multiplies_by_each_weight() -> None:
    """InternViT-300M: 24 layers of width 1024, 1,025 tokens a tile, and the projector on 256 of them."""
    width, tokens = 1024, 1025
    layer = 12 * width * width * tokens * 2 + 4 * width * tokens * tokens
    projector = 2 * 256 * (4 * width * C + C * C)
    patches = 2 * 1024 * width * 3 * 14 * 14
    vision = make_plan().vision_call(replace(WORKLOAD, batch=1))
    assert vision.operations == 3 * (24 * layer + projector + patches)


@pytest.mark.parametrize(
    ("name", "frames", "visual"),
    [
        ("InternVL2-2B", 8, 8 * 256),
        ("Qwen2-VL-2B", 8, 4 * 36 * 20),
        ("Qwen2-VL-2B", 9, 5 * 36 * 20),
        ("Qwen2.5-VL-3B", 8, 4 * 36 * 20),
        ("LLaVA-OneVision-0.5B", 8, 8 * 196 + 1),
    ],
)
def test_a_clip_has_the_tokens_of_its_frames(name: str, frames: int, visual: int) -> None:
    """A tile each; a pair of 1008 x 560 pixels, 28 x 28 a token; half as many a side as a tile has, and one end."""
    config, alone = read_config(published(name)), Workload(tiles=0, frames=frames)
    assert alone.visual_tokens(config) == visual
    assert replace(alone, tiles=2).visual_tokens(config) == visual + config.tokens_of(2)
    plan = ModelPlan(config, BF16, Shard())
    shares = [plan.vision_call(replace(alone, frames=count)).operations for count in (frames, 2 * frames)]
    assert shares[1] == (2 * shares[0] if frames % 2 == 0 else shares[0] * 9 // 5)
    assert plan.activation_bytes(alone) > 0


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_sum_twice_a_layer_and_once_for_the_embedding(world_size: int) -> None:
    decode, prefill = (call(WORKLOAD) for call in (make_plan(world_size).decode, make_plan(world_size).prefill))
    assert decode.reduced == (2 * 2 * C,) * (2 * LAYERS + 1)
    assert prefill.reduced == (2 * 2 * C * PROMPT,) * (2 * LAYERS - 1) + (2 * 2 * C,) * 2
    assert sent_bytes(decode, world_size) == 2 * (world_size - 1) / world_size * sum(decode.reduced)


def test_pruning_shortens_what_comes_after_the_prune_layer() -> None:
    guidance = GuidanceConfig(prune_layer=4, retention_ratio=0.25)
    plan = make_plan(2, guidance, points=(4, 9))
    kept = 3 * 64 + 40
    row = 2 * 2 * C
    # Of the layer before it, too, what is dropped serves keys and values only.
    assert sum(plan.prefill(WORKLOAD).reduced) == row * ((1 + 2 * 3) * PROMPT + 2 * 20 * kept + 2)
    per_token = 2 * 2 * 2 * KV // 2
    assert plan.kv_bytes(WORKLOAD) == (4 * per_token * (PROMPT + 10), 20 * per_token * (kept + 10))
    assert plan.unpruned().kv_bytes(WORKLOAD) == (24 * per_token * (PROMPT + 10), 0)
    # Layers below the prune layer see everything.
    assert plan.activation_bytes(WORKLOAD) == pytest.approx(plan.unpruned().activation_bytes(WORKLOAD), rel=0.01)


def test_rows_that_are_dropped_end_with_the_attention_of_the_layer_before() -> None:
    """At a prune point that is used, and at no other."""
    guidance = GuidanceConfig(prune_layer=4, retention_ratio=0.25)
    kept = 3 * 64 + 40
    full, short = PROMPT * (PROMPT + 1) // 2, kept * (kept + 1) // 2
    seen, going_on = 4 * PROMPT + 20 * kept, 3 * PROMPT + 20 * kept + 1
    matrices = MATRICES // LAYERS * seen - BEHIND_ATTENTION * (seen - going_on)
    attention = 4 * C * (4 * full + 20 * short)
    for points in ((4,), (1, 4, 9)):
        found = make_plan(1, guidance, points).prefill(WORKLOAD).operations
        assert found == 2 * (2 * (matrices + C * VOCABULARY) + attention), points


@pytest.mark.parametrize("layer", [0, 4])
def test_tiles_that_are_not_encoded_are_seen_by_no_layer(layer: int) -> None:
    """Of a model that is pruned; one that is not sees all of them."""
    guidance = GuidanceConfig(prune_layer=layer, retention_ratio=0.25)
    plan = make_plan(1, guidance, (4,))
    few = replace(WORKLOAD, encoded_tiles=1)
    assert 3 * plan.vision_call(few).operations == plan.vision_call(WORKLOAD).operations
    assert few.prompt_rows(CONFIG, (4,), guidance) == [(256 if layer else 3 * 64) + 40, 3 * 64 + 40]
    assert WORKLOAD.prompt_rows(CONFIG, (4,), guidance)[0] == (3 * 256 if layer else 3 * 64) + 40
    whole = plan.unpruned()
    assert whole.vision_call(few) == whole.vision_call(WORKLOAD)
    assert whole.prefill(few) == whole.prefill(WORKLOAD)


def test_a_question_costs_the_sum_of_its_stages() -> None:
    """Of what it keeps itself, whatever the plan was made for."""
    plan, chip = make_plan(2, GuidanceConfig(prune_layer=4, retention_ratio=0.9), (4,)), Chip()
    costs, half = Costs(plan, chip), make_plan(2, GuidanceConfig(prune_layer=4, retention_ratio=0.5), (4,))
    found = costs.of(Asked(tiles=4, encoded=3, kept=0.5, steps=2.5, text_tokens=40))
    workload = Workload(4, text_tokens=40, new_tokens=1, encoded_tiles=3)
    calls = half.vision_call(workload), half.prefill(workload), half.decode(workload)
    counts = 1, 1, 2.5
    operations = sum(count * call.operations for count, call in zip(counts, calls, strict=True))
    seconds = sum(count * call_seconds(call, chip, 2) for count, call in zip(counts, calls, strict=True))
    assert (found.operations, found.seconds) == pytest.approx((operations, seconds))
    assert costs.of(Asked(4, 4, None, 0)).operations > costs.of(Asked(4, 4, 0.5, 0)).operations


@pytest.mark.parametrize("precision", Target.TENSORRT.precisions())
def test_a_precision_changes_the_matrices_only(precision: Precision) -> None:
    storage = storage_of(Target.TENSORRT, precision)
    plan = ModelPlan(CONFIG, storage, Shard())
    head, rest = C * VOCABULARY, C * VOCABULARY + (2 * LAYERS + 1) * C
    expected = (MATRICES * storage.matrix + head * storage.head) / 8 + rest * 2
    assert plan.language_bytes == pytest.approx(expected, rel=1e-3)
    assert storage.head >= 8


def test_latency_is_the_slower_of_computing_and_reading_and_then_the_sums() -> None:
    plan, chip = make_plan(4), Chip(bandwidth=1e12, matrix_rate=1e15, interconnect=1e11, reduce_latency=1e-5)
    decode, prefill, vision = plan.decode(WORKLOAD), plan.prefill(WORKLOAD), plan.vision_call(WORKLOAD)
    sums = [49 * 1e-5 + 1.5 * sum(call.reduced) / 1e11 for call in (prefill, decode)]
    expected = Latency(
        first_token=vision.operations / 1e15 + prefill.operations / 1e15 + sums[0],
        next_token=decode.bytes / 1e12 + sums[1],
    )
    found = latency(plan, WORKLOAD, chip)
    assert (found.first_token, found.next_token) == pytest.approx((expected.first_token, expected.next_token))
    assert found.answer(10) == pytest.approx(expected.first_token + 9 * expected.next_token)


def test_where_memory_is_planned_a_batch_is_fed_prompt_by_prompt() -> None:
    """At most two prompts a call: more questions add what they decode, little beside a prompt."""
    plan = ModelPlan(CONFIG, BF16, Shard(), scores=True, planned=True)
    few, many = (plan.activation_bytes(replace(WORKLOAD, batch=batch)) for batch in (1, 16))
    assert few == many == ModelPlan(CONFIG, BF16, Shard(), scores=True).activation_bytes(WORKLOAD)
    long = replace(WORKLOAD, text_tokens=4000)
    assert plan.activation_bytes(long) < 0.3 * ModelPlan(CONFIG, BF16, Shard(), scores=True).activation_bytes(long)
