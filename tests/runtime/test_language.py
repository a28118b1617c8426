"""The language engine against transformers' eager models: logits, cache, importance, pruning, the scoring pass."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from engine import dims
from engine.bindings import SCORING_ENGINE
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime import write_scoring_engine
from engine.runtime import visual_scores
from engine.runtime.language import LanguageModel, cut
from engine.runtime.loading import load
from engine.runtime.prompt import PromptTokens, Pruning, answer_rows, prompt_rows
from engine.runtime.slots import SHORTEST
from engine.target import Target
from tests.oracle import LANGUAGES, Pair, build_pair, embed, pruned_logits
from tests.prefilled import NOTHING, WHOLE, Prefilled, step
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


Prefill = Callable[..., Prefilled]


@pytest.fixture
def prefill() -> Iterator[Prefill]:
    """A prompt in a slot of an engine, which is closed behind the test."""
    opened: list[Prefilled] = []

    def make(pair: Pair, prompt: PromptTokens, new: int = len(ANSWER), **options: Any) -> Prefilled:
        opened.append(Prefilled(pair.engine, prompt, new, prune_layers=pair.engine.prune_layers, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("chunk", [1, 2, 5, WHOLE])
@pytest.mark.parametrize("name", PROMPTS)
def test_prefill_and_cached_decode_equal_an_uncached_run(plain: Pair, prefill: Prefill, name: str, chunk: int) -> None:
    prompt = PROMPTS[name]
    actual = prefill(plain, prompt, chunk=chunk).decode(ANSWER)
    for count in range(len(ANSWER) + 1):
        # Each step by itself: dynamic RoPE rotates by the length at the time of the call, and keys keep their angles.
        if count and plain.engine.config.rope.scaling != "none":
            break
        expected = oracle_run(plain, prompt, ANSWER[:count]).logits[0, -1]
        assert_allclose(actual[count], expected, **TOLERANCE["fp32"])


def test_steps_together_equal_steps_alone(plain: Pair, prefill: Prefill) -> None:
    """Bit by bit: whoever else is there, in whatever order, and whoever leaves."""
    prompts = list(PROMPTS.values())[:4]
    alone = []
    for prompt in prompts:
        one = Prefilled(plain.engine, prompt, len(ANSWER))
        alone.append(one.decode(ANSWER))
        one.close()
    together = [prefill(plain, prompt) for prompt in prompts]
    for one, expected in zip(together, alone, strict=True):
        assert_array_equal(one.logits, expected[0])
    for turn, (token, who) in enumerate(zip(ANSWER, ([2, 0, 3, 1], [1, 3, 0], [0, 3], [3, 0], [3]), strict=True), 1):
        logits = step([together[index] for index in who], int(token), [False] * len(who))
        for index, row in zip(who, logits, strict=True):
            assert_array_equal(row, alone[index][turn])


def test_others_that_come_and_go_change_no_bit(scored: Pair) -> None:
    """Slots change places, and a long question makes every buffer longer."""
    answer, names = np.tile(ANSWER, 3), list(PROMPTS)[:4]
    rows = {name: np.arange(len(PROMPTS[name].ids) - 3, len(PROMPTS[name].ids)) for name in names}
    alone = {}
    for name in names:
        one = Prefilled(scored.engine, PROMPTS[name], len(answer), scored=rows[name])
        alone[name] = one.decode(answer, scored=True), one.visual_scores()
        one.close()
    rng, checked = np.random.default_rng(0), 0
    running: list[tuple[str, Prefilled]] = []
    done: dict[int, int] = {}
    for turn in range(80):
        if len(running) < 4 and turn % 3 == 0:
            name = names[rng.integers(len(names))]
            room = SHORTEST if turn % 12 == 3 else len(answer)
            running.append((name, Prefilled(scored.engine, PROMPTS[name], room, scored=rows[name])))
            done[running[-1][1].slot] = 0
            assert_array_equal(running[-1][1].logits, alone[name][0][0])
        who = [one for one in running if rng.random() < 0.8]
        rng.shuffle(who)  # type: ignore[arg-type]
        if who:
            fed = [answer[done[one.slot]] for _, one in who]
            for (name, one), row in zip(who, step([one for _, one in who], fed, [True] * len(who)), strict=True):
                done[one.slot] += 1
                assert_array_equal(row, alone[name][0][done[one.slot]])
        for name, one in [*running]:
            if done[one.slot] == len(answer):
                assert_array_equal(one.visual_scores(), alone[name][1])
                checked += 1
            if done[one.slot] == len(answer) or rng.random() < 0.02:
                one.close()
                running.remove((name, one))
    for _, one in running:
        one.close()
    assert checked > 5


def brute_force_scores(pair: Pair, prompt: PromptTokens, answer: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[L,V]: attention summed over heads and `rows` of the whole sequence, from transformers' full matrices."""
    attentions = oracle_run(pair, prompt, answer, output_attentions=True).attentions
    layers = torch.stack([layer[0] for layer in attentions]).double()
    return layers[:, :, rows][:, :, :, prompt.visual_positions].sum((1, 2)).numpy()


@pytest.mark.parametrize("chunk", [3, WHOLE])
@pytest.mark.parametrize("name", ["one image", "several images", "one visual token", "image first"])
def test_importance_equals_a_brute_force_sum(scored: Pair, prefill: Prefill, name: str, chunk: int) -> None:
    """Prefill rows alone for every layout; with decode rows where cached keys and an uncached run rotate alike."""
    prompt = PROMPTS[name]
    rows = np.array([row for row in range(prompt.prefix(), len(prompt.ids)) if row not in prompt.visual_positions])
    answer = ANSWER if scored.engine.config.rope.scaling == "none" else ANSWER[:0]
    one = prefill(scored, prompt, scored=rows, chunk=chunk)
    one.decode(answer, scored=True)
    everything = np.concatenate([rows, len(prompt.ids) + np.arange(len(answer))])
    expected = brute_force_scores(scored, prompt, answer, everything)
    assert_allclose(one.visual_scores(), expected, **TOLERANCE["scores"])


def test_importance_of_some_of_several(scored: Pair, prefill: Prefill) -> None:
    if scored.engine.config.rope.scaling != "none":
        pytest.skip("cached keys keep the angles of their own call, which an uncached run cannot show")
    prompts = [PROMPTS[name] for name in ("several images", "one visual token", "one image")]
    counted = [np.array([len(p.ids) - 2, len(p.ids) - 1]) for p in prompts]
    counted[1] = counted[1][:0]
    several = [prefill(scored, p, scored=rows) for p, rows in zip(prompts, counted, strict=True)]
    step(several, int(ANSWER[0]), [True, True, False])
    step([several[0], several[2]], int(ANSWER[1]), [True, False])
    for one, rows, answer in zip(several, counted, (ANSWER[:2], ANSWER[:1], ANSWER[:0]), strict=True):
        everything = np.concatenate([rows, len(one.prompt.ids) + np.arange(len(answer))]).astype(int)
        expected = brute_force_scores(scored, one.prompt, answer, everything)
        assert_allclose(one.visual_scores(), expected, **TOLERANCE["scores"])


@pytest.mark.parametrize("at_once", [1, 2, 32])
def test_importance_while_rows_wait(
    scored: Pair, prefill: Prefill, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are scored together, and whenever somebody looks."""
    monkeypatch.setattr(visual_scores, "SCORED_AT_ONCE", at_once)
    prompt = PROMPTS["one image"]
    one = prefill(scored, prompt, 2 * len(ANSWER), scored=np.array([20, 22]))
    found = [one.visual_scores()]
    for turn, token in enumerate([*ANSWER, *ANSWER]):
        step([one], int(token), [turn % 3 != 1])
        if turn in (4, 9):
            found.append(one.visual_scores())
    answer, counted = np.concatenate([ANSWER, ANSWER]), np.array([0, 2, 3, 5, 6, 8, 9]) + len(prompt.ids)
    if scored.engine.config.rope.scaling != "none":
        # Cached keys keep the angles of their own call, which an uncached run of more tokens cannot show.
        found, answer = found[:1], answer[:0]
    for scores, rows in zip(found, (0, 3, 7), strict=False):
        expected = brute_force_scores(scored, prompt, answer, np.concatenate([[20, 22], counted[:rows]]))
        assert_allclose(scores, expected, **TOLERANCE["scores"])


KEPT = {"keep one": [5], "keep some": [0, 3, 4, 9], "keep all": list(range(12))}


def pruned_before(prompt: PromptTokens, layer: int, kept: list[int]) -> Pruning:
    text = np.setdiff1d(np.arange(len(prompt.ids)), prompt.visual_positions)
    return Pruning(layer, np.sort(np.concatenate([text, prompt.visual_positions[kept]])))


@pytest.mark.parametrize("chunk", [1, 4, WHOLE])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
@pytest.mark.parametrize("layer", [0, *PRUNE_LAYERS])
def test_pruned_logits_equal_dropping_tokens_before_the_layer(
    pruned: Pair, prefill: Prefill, layer: int, kept: list[int], chunk: int
) -> None:
    """Also where nothing of a part survives."""
    prompt = PROMPTS["one image"]
    pruning = pruned_before(prompt, layer, kept)
    actual = prefill(pruned, prompt, 2, pruning=pruning, chunk=chunk).decode(ANSWER[:2])
    for count in range(3 if pruned.engine.config.rope.scaling == "none" else 1):
        expected = pruned_logits(pruned.oracle, prompt, ANSWER[:count], pruning)
        assert_allclose(actual[count], expected, **TOLERANCE["fp32"])


@pytest.mark.parametrize("chunk", [4, WHOLE])
@pytest.mark.parametrize("encoded", [[1, 4], [0, 1, 2, 4, 5, 11]])
def test_tokens_without_features_are_seen_by_no_layer(
    pruned: Pair, prefill: Prefill, encoded: list[int], chunk: int
) -> None:
    """They are dropped before the first layer, others before a later one."""
    whole, pruning = PROMPTS["one image"], pruned_before(PROMPTS["one image"], 2, [1, 4])
    prompt = replace(whole, features=whole.features[encoded], encoded=np.array(encoded))
    actual = prefill(pruned, prompt, 2, pruning=pruning, chunk=chunk).decode(ANSWER[:2])
    for count in range(3 if pruned.engine.config.rope.scaling == "none" else 1):
        first = pruned_before(whole, 0, encoded)
        expected = pruned_logits(pruned.oracle, whole, ANSWER[:count], first, pruning)
        assert_allclose(actual[count], expected, **TOLERANCE["fp32"])


def test_pruning_before_the_last_layer(tmp_path_factory: pytest.TempPathFactory, prefill: Prefill) -> None:
    pair = build_pair(tmp_path_factory.mktemp("last"), "llama", (4,))
    prompt = PROMPTS["several images"]
    pruning = pruned_before(prompt, 4, [2, 7])
    actual = prefill(pair, prompt, 1, pruning=pruning).logits
    assert_allclose(actual, pruned_logits(pair.oracle, prompt, ANSWER[:0], pruning), **TOLERANCE["fp32"])


def test_each_slot_is_pruned_by_itself(pruned: Pair, prefill: Prefill) -> None:
    prompts = [PROMPTS[name] for name in ("one image", "several images", "text only", "image first")]
    prunings = [
        Pruning(2, np.array([0, 1, 2, 3, 8, 16, 17, 18, 19, 20, 21, 22])),
        None,
        None,
        Pruning(4, np.array([1, 4, 5, 6, 7, 8, 9, 10, 11])),
    ]
    alone = []
    for prompt, pruning in zip(prompts, prunings, strict=True):
        one = Prefilled(pruned.engine, prompt, 3, pruning, prune_layers=PRUNE_LAYERS)
        alone.append(one.decode(ANSWER[:3]))
        one.close()
    several = [prefill(pruned, prompt, 3, pruning=pruning) for prompt, pruning in zip(prompts, prunings, strict=True)]
    for turn, token in enumerate(ANSWER[:3], 1):
        for row, expected in zip(step(several, int(token), [False] * 4), alone, strict=True):
            assert_array_equal(row, expected[turn])


LONG = make_prompt(SHORTEST + 9, list(range(4, SHORTEST + 4)))
LONG_KEPT = {"nothing pruned": None, "few kept": [0, 3, 9], "most kept": list(range(SHORTEST - 2))}


@pytest.mark.parametrize("kept", LONG_KEPT.values(), ids=LONG_KEPT.keys())
def test_a_short_prompt_beside_a_long_one(tmp_path: Path, prefill: Prefill, kept: list[int] | None) -> None:
    """Of the layers below and from the prune point, each by itself; a short prompt's tokens end early in its buffer."""
    pair, short = build_pair(tmp_path, "llama", (2,), scores=True), PROMPTS["one image"]
    rows, pruning = np.array([len(LONG.ids) - 1]), None if kept is None else pruned_before(LONG, 2, kept)
    scored = rows if kept is None else None
    both = [prefill(pair, LONG, pruning=pruning, scored=scored, chunk=200), prefill(pair, short)]
    actual = [np.stack([one.logits for one in both])]
    actual += [step(both, int(token), [kept is None, False]) for token in ANSWER]
    for count in range(len(ANSWER) + 1):
        expected = oracle_run(pair, short, ANSWER[:count]).logits[0, -1]
        assert_allclose(actual[count][1], expected, **TOLERANCE["fp32"])
        if pruning is not None:
            expected = pruned_logits(pair.oracle, LONG, ANSWER[:count], pruning)
        else:
            expected = oracle_run(pair, LONG, ANSWER[:count]).logits[0, -1]
        assert_allclose(actual[count][0], expected, **TOLERANCE["fp32"])
    if kept is None:
        counted = np.concatenate([rows, len(LONG.ids) + np.arange(len(ANSWER))])
        expected = brute_force_scores(pair, LONG, ANSWER, counted)
        assert_allclose(both[0].visual_scores(), expected, **TOLERANCE["scores"])


def test_pruned_caches_are_really_shorter(pruned: Pair) -> None:
    prompt = PROMPTS["one image"]
    sizes = []
    for pruning in (None, Pruning(1, np.array([0, 1, 2, 3, 16, 17, 18, 19, 20, 21, 22]))):
        one = Prefilled(pruned.engine, prompt, 1, pruning, prune_layers=PRUNE_LAYERS)
        sizes.append(pruned.engine.nbytes(one.need))
        one.close()
    layers = pruned.engine.config.num_layers
    assert sizes[1] / sizes[0] == pytest.approx((24 + (layers - 1) * 12) / (layers * 24))


@pytest.mark.parametrize("name", ["one image", "several images", "image first", "one visual token"])
@pytest.mark.parametrize("length", [1, 5])
def test_scoring_pass_equals_step_by_step(scored: Pair, prefill: Prefill, name: str, length: int) -> None:
    """The parallel pass over a pruned prompt against transformers, one token at a time, original positions."""
    prompt, answer = PROMPTS[name], ANSWER[:length]
    kept = [0] if len(prompt.visual_positions) == 1 else [1, 3]
    one = prefill(scored, prompt, len(answer), scored=np.array([len(prompt.ids) - 1]))
    one.decode(answer[:-1], scored=True)
    expected = prefill(scored, prompt, len(answer), scored=np.array([len(prompt.ids) - 1]))
    expected.decode(answer[:-1], scored=True)
    actual = one.score(kept, answer)
    assert_array_equal(one.visual_scores(), expected.visual_scores(), "rows that wait are scored before keys go")
    if scored.engine.config.rope.scaling != "none":
        assert np.isfinite(actual).all()
        return
    pruning = pruned_before(prompt, 0, kept)
    for count in range(length):
        assert_allclose(
            actual[count], pruned_logits(scored.oracle, prompt, answer[:count], pruning), **TOLERANCE["fp32"]
        )


def test_a_rejected_draft_leaves_nothing_behind(plain: Pair, prefill: Prefill) -> None:
    """Rows that are fed behind a prompt at once are those of steps, and what is truncated was never there."""
    prompt = PROMPTS["one image"]
    expected = prefill(plain, prompt, 9).decode(ANSWER)
    one = prefill(plain, prompt, 9)
    length = len(prompt.ids)
    wrong = np.array([ANSWER[0], ANSWER[1], 77, 78, 79])
    logits = plain.engine.extend(one.slot, answer_rows(length, wrong), np.arange(5), NOTHING)
    assert_allclose(logits[:2], expected[1:3], **TOLERANCE["fp32"])
    plain.engine.truncate(one.slot, length + 2)
    for turn, token in enumerate(ANSWER[2:], 3):
        assert_allclose(step([one], int(token), [False])[0], expected[turn], **TOLERANCE["fp32"])


def test_a_plan_with_room_for_few_rows_gives_the_same(
    scored: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prompts in parts, into caches of one length; angles go by the whole prompt all the same."""
    monkeypatch.setattr(dims, "MAX_SCORE_ROWS", 3)
    monkeypatch.setattr(dims, "MAX_LOGIT_ROWS", 2)
    limits = dims.Limits(max_tokens=40, max_batch=4, max_tiles=4, planned=True)
    free = scored.engine
    write_scoring_engine(scoring_graph(free.config, limits), tmp_path)
    scoring = load(Target.ONNXRUNTIME, tmp_path / SCORING_ENGINE, threads=1)
    planned = LanguageModel(
        free.executor, free.config, free.prune_layers, True, limits=limits, scoring=scoring, places=4
    )
    found = []
    for engine, of in ((free, dims.UNBOUNDED), (planned, limits)):
        several = [
            Prefilled(engine, p, len(ANSWER), scored=np.arange(1, len(p.ids)), limits=of)
            for p in list(PROMPTS.values())[:4]
        ]
        steps = [step(several, int(token), [True] * 4) for token in ANSWER]
        scores = [one.visual_scores() for one in several]
        found.append((*(one.logits for one in several), *steps, *scores, several[0].score([2, 5], ANSWER)))
        for one in several:
            one.close()
    for expected, actual in zip(*found, strict=True):
        assert_allclose(actual, expected, **TOLERANCE["fp32"])


def test_where_rows_are_cut_follows_from_them_alone() -> None:
    rows, limits = prompt_rows(make_prompt(23, list(range(4, 16)))), dims.Limits(40, 4, 4, planned=True)
    counted = np.array([0, 1, 2, 3, 20, 21, 22])
    assert cut(rows, NOTHING, NOTHING, 10, limits) == [slice(0, 10), slice(10, 20), slice(20, 23)]
    assert cut(rows, NOTHING, counted, WHOLE, limits) == [slice(0, 23)]
    parts = cut(rows, counted, counted, 10, replace(limits, max_tokens=3))
    assert parts == [slice(0, 3), slice(3, 10), slice(10, 20), slice(20, 23)]
