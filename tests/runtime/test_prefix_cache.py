"""Beginnings of prompts that are kept: what is computed again, and that no bit of an answer changes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ScoreRows
from engine.errors import EngineError
from engine.families import Turn
from engine.runtime.answer import Answer
from engine.runtime.language import LanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prefix_cache import MOST_ENTRIES, PrefixCache
from engine.runtime.question import Question

SAMPLING = SamplingConfig(max_new_tokens=5)
NEVER = ExitConfig(exit_threshold=1.01)
NO_EXIT = ExitConfig(enabled=False)
QUICK = ExitConfig(exit_threshold=0.0, criterion="confidence")  # type: ignore[arg-type]
UNGUIDED = GuidanceConfig(enabled=False)


def check_same(found: Answer, expected: Answer) -> None:
    """Bit by bit."""
    for name in ("text", "token_ids", "probabilities", "decision", "answered_by", "small_text"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("importance", "kept"):
        assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.fixture
def without(engine_directory: Path) -> Iterator[SglPipeline]:
    with SglPipeline.load(engine_directory, threads=1, prefix_cache=0) as pipeline:
        yield pipeline


@pytest.fixture
def keeping(engine_directory: Path) -> Iterator[SglPipeline]:
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        yield pipeline


def ask(pipeline: SglPipeline, question: Question) -> Answer:
    return pipeline.answer_batch([question])[0]


def test_a_second_question_about_a_picture_costs_its_text(
    keeping: SglPipeline, without: SglPipeline, picture: Image.Image
) -> None:
    for text in ("What is it?", "And how many of them are there?", "What is it?", "x" * 7, "Why? " * 9):
        question = Question((picture,), text, exit=NEVER, sampling=SAMPLING)
        found, expected = ask(keeping, question), ask(without, question)
        check_same(found, expected)
        assert expected.reuse.tokens_known == 0
        if text != "What is it?":
            small = keeping.small.look((picture,), text, 5).encoded
            first_scored = int(small.visual_positions[-1]) + 1
            block = 2 * keeping.small.config.language.head_dim
            assert first_scored - block <= found.reuse.tokens_known <= first_scored
    assert keeping.load_now().kv_memory_kept > 0
    assert without.load_now().kv_memory_kept == 0


@pytest.mark.parametrize("length", range(1, 70, 2))
def test_at_every_length(keeping: SglPipeline, without: SglPipeline, picture: Image.Image, length: int) -> None:
    """Some rows end a run in a way that sums them by other kernels."""
    tiny = picture.crop((0, 0, 30, 30))
    options = {"exit": NEVER, "sampling": replace(SAMPLING, max_new_tokens=2)}
    ask(keeping, Question((tiny,), "A question of another length", **options))  # type: ignore[arg-type]
    question = Question((tiny,), "a b " * length, **options)  # type: ignore[arg-type]
    check_same(ask(keeping, question), ask(without, question))


def test_a_chat_goes_on_where_it_was(keeping: SglPipeline, without: SglPipeline, picture: Image.Image) -> None:
    """Where no row of earlier turns is scored, they are known, too; the large model alone reuses its own."""
    ways = {
        "scored": (GuidanceConfig(), NEVER, True),
        "question rows": (GuidanceConfig(score_rows=ScoreRows.QUESTION), NEVER, False),
        "small alone": (UNGUIDED, QUICK, False),
        "large alone": (UNGUIDED, NO_EXIT, False),
    }
    for name, (guidance, exit, is_scored) in ways.items():
        turns: tuple[Turn, ...] = ()
        known = []
        for text in (f"What does {name} see in the picture there?", "And behind it, or beside it?", "Anything else?"):
            question = Question((picture,), text, guidance, exit, SAMPLING, history=turns)
            found = ask(keeping, question)
            check_same(found, ask(without, question))
            known.append(found.reuse.tokens_known)
            turns = (*turns, Turn(text, f"It is what {text} wants to know."))
        assert known[2] == known[1] if is_scored else known[2] > known[1] > known[0], name


def test_questions_that_come_together_share_what_the_first_one_feeds(
    keeping: SglPipeline, without: SglPipeline, picture: Image.Image
) -> None:
    asked = [Question((picture,), f"Number {number}?", exit=NEVER, sampling=SAMPLING) for number in range(6)]
    found = keeping.answer_batch(asked)
    assert sum(one.reuse.tokens_known > 0 for one in found) >= 4
    for one, expected in zip(found, without.answer_batch(asked), strict=True):
        check_same(one, expected)


def test_pictures_of_other_content_or_shape_are_others(keeping: SglPipeline, picture: Image.Image) -> None:
    changed = picture.copy()
    changed.putpixel((319, 149), tuple(255 - part for part in changed.getpixel((319, 149))))  # type: ignore[union-attr]
    turned = picture.rotate(90, expand=True)
    before = None
    for image in (picture, changed, turned):
        reuse = ask(keeping, Question((image,), "What?", exit=NEVER, sampling=SAMPLING)).reuse
        prefix = int(keeping.small.look((image,), "What?", 5).encoded.visual_positions[0])
        tile = len(keeping.small.look((image,), "What?", 5).encoded.visual_positions)
        assert reuse.tokens_known < prefix + tile
        before = reuse.tokens_known if before is None else before
    assert before == 0


def test_nothing_is_kept_that_a_question_needs(
    engine_directory: Path, without: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept counts, and goes before anybody waits."""
    sizes: list[int] = []
    nbytes = LanguageModel.nbytes
    asked = [
        Question((picture.rotate(90 * number, expand=True),), "What?", exit=NEVER, sampling=SAMPLING)
        for number in range(4)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "nbytes", lambda self, need: sizes.append(nbytes(self, need)) or sizes[-1])
        expected = without.answer_batch(asked)
    with SglPipeline.load(engine_directory, threads=1, kv_memory=max(sizes)) as pipeline:
        for _ in range(2):
            for found, other in zip(pipeline.answer_batch(asked), expected, strict=True):
                check_same(found, other)
                load = pipeline.load_now()
                assert load.kv_memory_used + load.kv_memory_kept <= max(sizes)


def test_memory_that_is_not_there_costs_no_answer(
    keeping: SglPipeline, without: SglPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, place: int, start: int, stop: int) -> None:
        raise MemoryError

    question = Question((picture,), "What?", exit=NEVER, sampling=SAMPLING)
    monkeypatch.setattr("engine.runtime.slots.Slots.copy_out", fail)
    for _ in range(2):
        check_same(ask(keeping, question), ask(without, question))
    assert keeping.load_now().kv_memory_kept == 0


class Tables:
    """A language model of which only what is saved is looked at: by number, the slot's rows."""

    def __init__(self) -> None:
        self.saved: dict[int, list[int]] = {}
        self.slots: dict[int, list[int]] = {}
        self.count, self.is_dead, self.is_full = 0, False, False

    def row_bytes(self) -> int:
        return 1

    def save(self, slot: int, start: int, stop: int) -> int:
        if self.is_full:
            raise EngineError("no memory")
        self.count += 1
        self.saved[self.count] = self.slots[slot][start:stop]
        return self.count

    def holds(self, saved: int) -> bool:
        return not self.is_dead

    def restore(self, slot: int, saved: int, count: int) -> None:
        assert count <= len(self.saved[saved])
        self.slots.setdefault(slot, []).extend(self.saved[saved][:count])

    def forget(self, saved: int) -> None:
        del self.saved[saved]


def marks(prompt: list[int]) -> np.ndarray:
    return np.array(prompt, np.int64)[:, None]


@pytest.mark.parametrize("capacity", [0, 3, 12, 40, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_kept_comes_back_as_it_was(capacity: int, seed: int) -> None:
    """Prompts of few different tokens, so that many begin alike; two models; room that comes and goes."""
    rng, cache, models = np.random.default_rng(seed), PrefixCache(capacity), (Tables(), Tables())
    allowed, hits = capacity, 0
    for turn in range(400):
        language = models[rng.integers(2)]
        prompt = rng.integers(0, 2, rng.integers(1, 12)).tolist()
        known = cache.find(language, marks(prompt))  # type: ignore[arg-type]
        language.slots[turn] = []
        if known.count:
            hits += 1
            cache.restore(replace(known, count=int(rng.integers(1, known.count + 1))), turn)
        assert language.slots[turn] == prompt[: len(language.slots[turn])]
        language.slots[turn] = prompt
        language.is_full = rng.random() < 0.1
        cache.keep(language, turn, marks(prompt))  # type: ignore[arg-type]
        language.is_full = False
        if rng.random() < 0.1:
            allowed = int(rng.integers(0, capacity + 1))
            cache.allow(allowed)
        held = sum(len(rows) for model in models for rows in model.saved.values())
        assert held == cache.nbytes() <= max(0, min(capacity, allowed))
        assert sum(len(model.saved) for model in models) <= MOST_ENTRIES
    assert hits > (20 if capacity > 10 else -1)


def test_what_ranks_held_is_forgotten_with_them() -> None:
    cache, language = PrefixCache(100), Tables()
    language.slots[0] = [1, 2, 3]
    cache.keep(language, 0, marks([1, 2, 3]))  # type: ignore[arg-type]
    assert cache.find(language, marks([1, 2])).count == 2  # type: ignore[arg-type]
    language.is_dead = True
    assert cache.find(language, marks([1, 2])).count == 0  # type: ignore[arg-type]
    assert cache.nbytes() == 0
