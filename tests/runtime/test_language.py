"""The language engine against transformers' eager models: logits, cache, importance, pruning, the scoring pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from engine import dims
from engine.bindings import SCORING_ENGINE
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime import write_scoring_engine
from engine.plugins.cached_attention.onnxruntime import MIN_GROUP
from engine.runtime.language import Generation, LanguageModel
from engine.runtime.loading import load
from engine.runtime.prompt import PromptTokens, Pruning, Request
from engine.target import Target
from tests.oracle import LANGUAGES, Pair, build_pair, embed, pruned_logits
from tests.tolerance import TOLERANCE

PRUNE_LAYERS = (1, 2, 4)


@pytest.fixture(scope="module", params=LANGUAGES)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("plain"), request.param)


@pytest.fixture(scope="module", params=LANGUAGES)
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("scored"), request.param, scores=True)


@pytest.fixture(scope="module", params=["qwen2", "internlm2"])
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("pruned"), request.param, PRUNE_LAYERS)


def make_prompt(length: int, visual: list[int], seed: int = 0) -> PromptTokens:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((len(visual), 48), dtype=np.float32) * 0.3
    return PromptTokens(rng.integers(0, 131, length), np.array(visual, np.int64), features)


PROMPTS = {
    "one image": make_prompt(23, list(range(4, 16))),
    "several images": make_prompt(31, [2, 3, 4, 5, 9, 10, 11, 12, 20, 21], seed=1),
    "one visual token": make_prompt(7, [3], seed=2),
    "image first": make_prompt(12, [0, 1, 2, 3], seed=3),
    "text only": make_prompt(9, [], seed=4),
}
ANSWER = np.array([5, 17, 99, 3, 120])


@torch.no_grad()
def oracle_run(pair: Pair, prompt: PromptTokens, tokens: np.ndarray, **options: Any) -> Any:
    """transformers over the prompt and the given tokens at once, no cache."""
    ids = np.concatenate([prompt.ids, tokens])
    embeds = embed(pair.oracle, ids, prompt.visual_positions, prompt.features)
    return pair.oracle(inputs_embeds=embeds, use_cache=False, **options)


def decode_all(generation: Generation, tokens: np.ndarray, scored: bool = True) -> np.ndarray:
    """Feed the same tokens to every request -> [B,G+1,vocab], the prefill's logits first."""
    batch = len(generation.logits)
    always, counted = np.ones(batch, bool), np.full(batch, scored)
    steps = [generation.logits.copy()]
    steps += [generation.decode(np.full(batch, token), always, counted).copy() for token in tokens]
    return np.stack(steps, axis=1)


@pytest.mark.parametrize("name", PROMPTS)
def test_prefill_and_cached_decode_equal_an_uncached_run(plain: Pair, name: str) -> None:
    prompt = PROMPTS[name]
    actual = decode_all(plain.engine.prefill([Request(prompt)], len(ANSWER)), ANSWER)[0]
    for step in range(len(ANSWER) + 1):
        # Each step by itself: dynamic RoPE rotates by the length at the time of the call, and keys keep their angles.
        if step and plain.engine.config.rope.scaling != "none":
            break
        expected = oracle_run(plain, prompt, ANSWER[:step]).logits[0, -1]
        assert_allclose(actual[step], expected, **TOLERANCE["fp32"])


def test_ragged_batch_equals_each_request_alone(plain: Pair) -> None:
    prompts = list(PROMPTS.values())[:4]
    together = decode_all(plain.engine.prefill([Request(p) for p in prompts], len(ANSWER)), ANSWER)
    for prompt, rows in zip(prompts, together, strict=True):
        alone = decode_all(plain.engine.prefill([Request(prompt)], len(ANSWER)), ANSWER)[0]
        assert_allclose(rows, alone, **TOLERANCE["fp32"])


def test_finished_requests_do_not_disturb_the_others(plain: Pair) -> None:
    prompts = list(PROMPTS.values())[:2]
    generation = plain.engine.prefill([Request(p) for p in prompts], len(ANSWER))
    for token in ANSWER:
        active = np.array([token == ANSWER[0], True])
        logits = generation.decode(np.array([token, token]), active, active)
    expected = decode_all(plain.engine.prefill([Request(prompts[1])], len(ANSWER)), ANSWER)[0, -1]
    assert_allclose(logits[1], expected, **TOLERANCE["fp32"])


def brute_force_scores(pair: Pair, prompt: PromptTokens, answer: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[L,V]: attention summed over heads and `rows` of the whole sequence, from transformers' full matrices."""
    attentions = oracle_run(pair, prompt, answer, output_attentions=True).attentions
    layers = torch.stack([layer[0] for layer in attentions]).double()
    return layers[:, :, rows][:, :, :, prompt.visual_positions].sum((1, 2)).numpy()


@pytest.mark.parametrize("name", ["one image", "several images", "one visual token", "image first"])
def test_importance_equals_a_brute_force_sum(scored: Pair, name: str) -> None:
    """Prefill rows alone for every layout; with decode rows where cached keys and an uncached run rotate alike."""
    prompt = PROMPTS[name]
    rows = np.array([row for row in range(prompt.prefix(), len(prompt.ids)) if row not in prompt.visual_positions])
    answer = ANSWER if scored.engine.config.rope.scaling == "none" else ANSWER[:0]
    generation = scored.engine.prefill([Request(prompt, score_rows=rows)], len(ANSWER))
    decode_all(generation, answer)
    everything = np.concatenate([rows, len(prompt.ids) + np.arange(len(answer))])
    expected = brute_force_scores(scored, prompt, answer, everything)
    assert_allclose(generation.visual_scores(0), expected, **TOLERANCE["scores"])


def test_importance_in_a_ragged_batch(scored: Pair) -> None:
    prompts = [PROMPTS[name] for name in ("several images", "one visual token", "one image")]
    requests = [Request(p, score_rows=np.array([len(p.ids) - 2, len(p.ids) - 1])) for p in prompts]
    requests[1] = Request(prompts[1])
    generation = scored.engine.prefill(requests, len(ANSWER))
    counted = np.array([True, True, False])
    for step, token in enumerate(ANSWER[:2]):
        generation.decode(np.full(3, token), np.array([True, step == 0, True]), counted)
    if scored.engine.config.rope.scaling != "none":
        pytest.skip("cached keys keep the angles of their own call, which an uncached run cannot show")
    for index, (prompt, answer, rows) in enumerate(
        zip(prompts, (ANSWER[:2], ANSWER[:1], ANSWER[:0]), (2, 0, 2), strict=True)
    ):
        counting = np.concatenate([np.arange(-rows, 0), np.arange(len(answer))]).astype(int) + len(prompt.ids)
        expected = brute_force_scores(scored, prompt, answer, counting)
        assert_allclose(generation.visual_scores(index), expected, **TOLERANCE["scores"])


@pytest.mark.parametrize("at_once", [1, 2, 32])
def test_importance_while_rows_wait(scored: Pair, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are scored together, and whenever somebody looks."""
    monkeypatch.setattr(dims, "SCORED_AT_ONCE", at_once)
    prompt, always = PROMPTS["one image"], np.ones(1, bool)
    generation = scored.engine.prefill([Request(prompt, score_rows=np.array([20, 22]))], 2 * len(ANSWER))
    found = [generation.visual_scores(0).copy()]
    for step, token in enumerate([*ANSWER, *ANSWER]):
        generation.decode(np.array([token]), always, np.array([step % 3 != 1]))
        if step in (4, 9):
            found.append(generation.visual_scores(0).copy())
    answer, counted = np.concatenate([ANSWER, ANSWER]), np.array([0, 2, 3, 5, 6, 8, 9]) + len(prompt.ids)
    if scored.engine.config.rope.scaling != "none":
        # Cached keys keep the angles of their own call, which an uncached run of more tokens cannot show.
        found, answer = found[:1], answer[:0]
    for scores, rows in zip(found, (0, 3, 7), strict=False):
        expected = brute_force_scores(scored, prompt, answer, np.concatenate([[20, 22], counted[:rows]]))
        assert_allclose(scores, expected, **TOLERANCE["scores"])


KEPT = {"keep one": [5], "keep some": [0, 3, 4, 9], "keep all": list(range(12))}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
@pytest.mark.parametrize("layer", [0, *PRUNE_LAYERS])
def test_pruned_logits_equal_dropping_tokens_before_the_layer(pruned: Pair, layer: int, kept: list[int]) -> None:
    prompt = PROMPTS["one image"]
    text = np.setdiff1d(np.arange(len(prompt.ids)), prompt.visual_positions)
    pruning = Pruning(layer, np.sort(np.concatenate([text, prompt.visual_positions[kept]])))
    actual = decode_all(pruned.engine.prefill([Request(prompt, pruning)], 2), ANSWER[:2])[0]
    steps = 3 if pruned.engine.config.rope.scaling == "none" else 1
    for step in range(steps):
        expected = pruned_logits(pruned.oracle, prompt, ANSWER[:step], pruning)
        assert_allclose(actual[step], expected, **TOLERANCE["fp32"])


def test_pruning_before_the_last_layer(tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = build_pair(tmp_path_factory.mktemp("last"), "llama", (4,))
    prompt = PROMPTS["several images"]
    text = np.setdiff1d(np.arange(len(prompt.ids)), prompt.visual_positions)
    pruning = Pruning(4, np.sort(np.concatenate([text, prompt.visual_positions[[2, 7]]])))
    actual = pair.engine.prefill([Request(prompt, pruning)], 1).logits[0]
    assert_allclose(actual, pruned_logits(pair.oracle, prompt, ANSWER[:0], pruning), **TOLERANCE["fp32"])


def test_batch_prunes_each_request_by_itself(pruned: Pair) -> None:
    prompts = [PROMPTS[name] for name in ("one image", "several images", "text only", "image first")]
    prunings = [
        Pruning(2, np.array([0, 1, 2, 3, 8, 16, 17, 18, 19, 20, 21, 22])),
        None,
        None,
        Pruning(4, np.array([1, 4, 5, 6, 7, 8, 9, 10, 11])),
    ]
    requests = [Request(prompt, pruning) for prompt, pruning in zip(prompts, prunings, strict=True)]
    together = decode_all(pruned.engine.prefill(requests, 3), ANSWER[:3])
    for request, rows in zip(requests, together, strict=True):
        assert_allclose(rows, decode_all(pruned.engine.prefill([request], 3), ANSWER[:3])[0], **TOLERANCE["fp32"])


LONG = make_prompt(521, list(range(4, 516)))
LONG_KEPT = {"nothing pruned": None, "few kept": [0, 3, 9], "most kept": list(range(510))}


@pytest.mark.parametrize("kept", LONG_KEPT.values(), ids=LONG_KEPT.keys())
def test_grouped_heads_over_long_caches(tmp_path: Path, kept: list[int] | None) -> None:
    """Of the layers below and from the prune point, each by itself; a short request's tokens end early in its cache."""
    pair, short, rows = (
        build_pair(tmp_path, "llama", (2,), scores=True),
        PROMPTS["one image"],
        np.array([len(LONG.ids) - 1]),
    )
    assert pair.engine.config.num_heads >= MIN_GROUP * pair.engine.config.num_kv_heads
    request = Request(LONG, score_rows=rows)
    if kept is not None:
        text = np.setdiff1d(np.arange(len(LONG.ids)), LONG.visual_positions)
        request = Request(LONG, Pruning(2, np.sort(np.concatenate([text, LONG.visual_positions[kept]]))))
    generation = pair.engine.prefill([request, Request(short)], len(ANSWER))
    actual = decode_all(generation, ANSWER, scored=kept is None)
    for step in range(len(ANSWER) + 1):
        assert_allclose(actual[1, step], oracle_run(pair, short, ANSWER[:step]).logits[0, -1], **TOLERANCE["fp32"])
        if request.pruning is not None:
            expected = pruned_logits(pair.oracle, LONG, ANSWER[:step], request.pruning)
        else:
            expected = oracle_run(pair, LONG, ANSWER[:step]).logits[0, -1]
        assert_allclose(actual[0, step], expected, **TOLERANCE["fp32"])
    if kept is None:
        counted = np.concatenate([rows, len(LONG.ids) + np.arange(len(ANSWER))])
        assert_allclose(
            generation.visual_scores(0), brute_force_scores(pair, LONG, ANSWER, counted), **TOLERANCE["scores"]
        )


def test_pruned_caches_are_really_shorter(pruned: Pair) -> None:
    prompt = PROMPTS["one image"]
    rows = np.array([0, 1, 2, 3, 16, 17, 18, 19, 20, 21, 22])
    full = pruned.engine.prefill([Request(prompt)], 1).kv_cache.nbytes()
    short = pruned.engine.prefill([Request(prompt, Pruning(1, rows))], 1).kv_cache.nbytes()
    layers = pruned.engine.config.num_layers
    assert short / full == pytest.approx((24 + (layers - 1) * 12) / (layers * 24))


@pytest.mark.parametrize("name", ["one image", "several images", "image first", "one visual token"])
@pytest.mark.parametrize("length", [1, 5])
def test_scoring_pass_equals_step_by_step(scored: Pair, name: str, length: int) -> None:
    """The parallel pass over a pruned prompt against transformers, one token at a time, original positions."""
    prompt, answer = PROMPTS[name], ANSWER[:length]
    kept = np.array([0] if len(prompt.visual_positions) == 1 else [1, 3])
    generation = scored.engine.prefill([Request(prompt)], len(answer))
    decode_all(generation, answer)
    before = generation.visual_scores(0).copy()
    actual = generation.score(0, kept, answer)
    text = np.setdiff1d(np.arange(len(prompt.ids)), prompt.visual_positions)
    pruning = Pruning(0, np.sort(np.concatenate([text, prompt.visual_positions[kept]])))
    if scored.engine.config.rope.scaling != "none":
        assert np.isfinite(actual).all()
        return
    for step in range(length):
        expected = pruned_logits(scored.oracle, prompt, answer[:step], pruning)
        assert_allclose(actual[step], expected, **TOLERANCE["fp32"])
    assert_allclose(generation.visual_scores(0), before)


def test_scoring_pass_of_one_request_in_a_batch(scored: Pair) -> None:
    prompts = [PROMPTS[name] for name in ("several images", "one image")]
    together = scored.engine.prefill([Request(p) for p in prompts], len(ANSWER))
    decode_all(together, ANSWER)
    for index, prompt in enumerate(prompts):
        alone = scored.engine.prefill([Request(prompt)], len(ANSWER))
        decode_all(alone, ANSWER)
        expected = alone.score(0, np.array([2]), ANSWER).copy()
        together.kv_cache.bind(scored.engine.executor)
        assert_allclose(together.score(index, np.array([2]), ANSWER), expected, **TOLERANCE["fp32"])


def test_a_plan_with_room_for_few_rows_gives_the_same(
    scored: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prompts in turns and in parts, into caches of one length; angles go by the whole prompt all the same."""
    monkeypatch.setattr(dims, "MAX_SCORE_ROWS", 3)
    monkeypatch.setattr(dims, "MAX_LOGIT_ROWS", 2)
    limits = dims.Limits(max_tokens=40, max_batch=4, max_tiles=4, planned=True)
    free = scored.engine
    write_scoring_engine(scoring_graph(free.config, limits), tmp_path)
    scoring = load(Target.ONNXRUNTIME, tmp_path / SCORING_ENGINE, threads=1)
    planned = LanguageModel(free.executor, free.config, free.prune_layers, free.scores, limits=limits, scoring=scoring)
    requests = [Request(p, score_rows=np.arange(1, len(p.ids))) for p in list(PROMPTS.values())[:4]]
    found = []
    for engine in (free, planned):
        generation = engine.prefill(requests, len(ANSWER))
        logits = decode_all(generation, ANSWER)
        scores = [generation.visual_scores(index).copy() for index in range(len(requests))]
        found.append((logits, *scores, generation.score(0, np.array([2, 5]), ANSWER).copy()))
    for expected, actual in zip(*found, strict=True):
        assert_allclose(actual, expected, **TOLERANCE["fp32"])
