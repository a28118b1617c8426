"""One question from top to bottom: the small model answers and scores, exits if it is sure, else the large one answers
with the visual tokens that matter.

A generator: it yields the work that it needs done (`work`) and is sent the results; who else is asked at the same time
it does not know.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from engine.config import GuidanceSource, SamplingConfig, ScoreRows
from engine.families import Pieces
from engine.manifest import Manifest
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.arrays import to_host
from engine.runtime.early_exit import ExitDecision, decide
from engine.runtime.guidance import (
    counts_decode,
    fastv_importance,
    importance,
    keep_rows,
    random_importance,
    resample,
    score_rows,
    select,
)
from engine.runtime.model import Seen, VisionLanguageModel, split_alike
from engine.runtime.prompt import PromptTokens, Pruning, Rows, prompt_rows, reread
from engine.runtime.question import Meter, OnText, Question, Settings, Stage, Watch, settle
from engine.runtime.sampling import Sampler, log_probabilities, read, read_probabilities
from engine.runtime.tome import merge
from engine.runtime.utterance import Completion, FinishReason, Utterance
from engine.runtime.work import NONE, Encode, Extend, Open, Outside, Step, Work

Result = TypeVar("Result")
Asking = Generator[Work, Any, Result]


class Pair(Protocol):
    """Both models, each loaded when it is first asked for."""

    manifest: Manifest

    @property
    def small(self) -> VisionLanguageModel: ...

    @property
    def large(self) -> VisionLanguageModel: ...


@dataclass(frozen=True)
class SmallSaid:
    """What the small model made of a question. importance: float32 [V] of its visual tokens, if they were scored."""

    seen: Seen
    completion: Completion
    importance: np.ndarray | None
    decision: ExitDecision | None

    def exits_early(self) -> bool:
        return self.decision is not None and self.decision.early_exit


@dataclass(frozen=True)
class Kept:
    """What the large model is given to read. importance [V] and kept [N]: of its visual tokens; None keeps all."""

    rows: Rows
    importance: np.ndarray | None
    kept: np.ndarray | None


@dataclass(frozen=True)
class LargeSaid:
    seen: Seen
    completion: Completion
    kept: Kept


def answer(question: Question, pair: Pair, say: OnText, meter: Meter) -> Asking[Answer]:
    """Raises EngineError. say: gets the answer piece by piece. meter: whoever runs the engines counts there."""
    settings, watch, small, large = settle(question, pair.manifest), Watch(meter), None, None
    if settings.wants_small():
        small = yield from ask_small(question, settings.of_small(), pair.small, watch)
        if is_cut_off(small.completion, settings.sampling):
            small = replace(small, decision=small.decision and replace(small.decision, early_exit=False))
    if small is not None and small.exits_early():
        say(small.completion.text)
    else:
        large = yield from ask_large(question, settings, pair, small, watch, say)
    said = large or small
    assert said is not None
    return Answer(
        text=said.completion.text,
        answered_by=AnsweredBy.LARGE if large else AnsweredBy.SMALL,
        finish_reason=said.completion.finish_reason,
        decision=small.decision if small else None,
        small_text=small.completion.text if small else None,
        prompt_tokens=len(said.seen.encoded.ids),
        visual_tokens=len(said.seen.encoded.visual_positions),
        guidance=settings.guidance if large and large.kept.kept is not None else None,
        kept=large.kept.kept if large else None,
        importance=large.kept.importance if large else said.importance,  # type: ignore[union-attr]
        boxes=said.seen.grid.boxes,
        images=said.seen.grid.images,
        token_ids=said.completion.token_ids,
        probabilities=said.completion.probabilities,
        num_layers=pair.manifest.models["large"].config.language.num_layers,
        seconds=watch.seconds,
        engine_seconds=watch.engine_seconds,
    )


def is_cut_off(said: Completion, sampling: SamplingConfig) -> bool:
    """Whether the small model would have gone on, had it been asked for the answer only."""
    return said.finish_reason is FinishReason.LENGTH and len(said.token_ids) < sampling.max_new_tokens


def ask_small(question: Question, settings: Settings, model: VisionLanguageModel, watch: Watch) -> Asking[SmallSaid]:
    """Answer, score and decide. What it says is not shown before it is known to be the answer."""
    with watch(Stage.SMALL_VISION):
        seen, prompt = yield from look(model, question, settings)
    speaker = Speaker(model, seen, settings, watch, (Stage.SMALL_PREFILL, Stage.SMALL_DECODE))
    rows, wants_scores = prompt_rows(prompt), settings.wants_small_scores()
    ranking = decision = None
    with (yield from speaker.open(rows, wants_scores)) as slot:
        scored = Scored.of(prompt, settings.guidance.score_rows) if wants_scores else Scored()
        completion = yield from speaker.speak(slot, rows, scored)
        if wants_scores:
            with watch(Stage.SMALL_DECODE):
                ranking = importance(model.language.visual_scores(slot), settings.guidance)
        if settings.exit.enabled:
            agreement = None
            if settings.wants_consistency():
                assert ranking is not None
                with watch(Stage.CONSISTENCY):
                    kept = select(ranking, settings.exit.num_kept(len(ranking)))
                    agreement = yield from agree(model, slot, prompt, kept, np.array(completion.token_ids))
            said = np.array(completion.probabilities), np.array(completion.entropies)
            decision = decide(settings.exit, *said, agreement)
    return SmallSaid(seen, completion, ranking, decision)


def ask_large(
    question: Question, settings: Settings, pair: Pair, small: SmallSaid | None, watch: Watch, say: OnText
) -> Asking[LargeSaid]:
    """Answer with the visual tokens that the guidance keeps."""
    model, pieces = pair.large, None
    if small is not None and split_alike(model.config, pair.manifest.models["small"].config):
        pieces = small.seen.pieces
    with watch(Stage.LARGE_VISION):
        seen, prompt = yield from look(model, question, settings, pieces)
    speaker = Speaker(model, seen, settings, watch, (Stage.LARGE_PREFILL, Stage.LARGE_DECODE))
    kept = keep(settings, prompt, (yield from rank(speaker, prompt, small)))
    with (yield from speaker.open(kept.rows)) as slot:
        completion = yield from speaker.speak(slot, kept.rows, Scored(), say)
    return LargeSaid(seen, completion, kept)


def look(
    model: VisionLanguageModel, question: Question, settings: Settings, pieces: Sequence[Pieces] | None = None
) -> Asking[tuple[Seen, PromptTokens]]:
    """Cut up the pictures, tokenize the prompt, encode what is seen. pieces: where another model cut them up alike."""
    said = settings.sampling.max_new_tokens, question.history, question.system
    asked = question.images, question.text, *said, question.picture
    seen: Seen = yield Outside(partial(model.look, *asked, pieces))
    features = []
    for part in seen.pieces:
        features.append((yield Encode(model, part.pixels, part.packing)))
    return seen, seen.prompt(features, model.config.vision.output_size)


@dataclass(frozen=True)
class Scored:
    """Whose attention counts: these rows of the prompt, and whether those of generated tokens do."""

    prompt: np.ndarray = field(default_factory=lambda: NONE)
    generated: bool = False

    @classmethod
    def of(cls, prompt: PromptTokens, rows: ScoreRows) -> "Scored":
        scored = score_rows(prompt.visual_positions, len(prompt.ids), rows, prompt.feature_rows())
        return cls(scored, counts_decode(rows))


@dataclass(frozen=True)
class Speaker:
    """A model that is about to answer. stages: of prefill and decode."""

    model: VisionLanguageModel
    seen: Seen
    settings: Settings
    watch: Watch
    stages: tuple[Stage, Stage]

    def open(self, rows: Rows, wants_scores: bool = False) -> Asking[AbstractContextManager[int]]:
        """A slot for the prompt and its answer."""
        columns = self.seen.encoded.visual_positions if wants_scores else None
        with self.watch(self.stages[0]):
            need = self.model.need(rows, self.settings.sampling.max_new_tokens, columns)
            lease: AbstractContextManager[int] = yield Open(self.model, need)
        return lease

    def speak(self, slot: int, rows: Rows, scored: Scored, say: OnText = lambda piece: None) -> Asking[Completion]:
        """The answer to a prompt. The last token of an answer is never fed back."""
        sampling = self.settings.sampling
        sampler, last = Sampler(sampling), np.array([len(rows) - 1])
        utterance = Utterance(self.model.tokenizer, self.seen.encoded.stop, sampling, say)
        prefill, decode = self.stages
        with self.watch(prefill):
            first = Extend(self.model, slot, rows, last, lambda logits: sampler.choose(logits[0]), scored.prompt)
            choice = yield first
        with self.watch(decode):
            while utterance.push(read(choice)):
                token = utterance.last_token()
                choice = yield Step(self.model, slot, token, scored.generated, sampler.choose)
        return utterance.completion()


def agree(
    model: VisionLanguageModel, slot: int, prompt: PromptTokens, kept: np.ndarray, answer: np.ndarray
) -> Asking[np.ndarray]:
    """[N], [G] -> float64 [G]: the probabilities of an answer's tokens if only these visual tokens are seen (eq. 8).

    One parallel pass that goes on from the text before the pictures.
    """
    again = reread(prompt, keep_rows(prompt.visual_positions, kept, len(prompt.ids)), answer)
    model.language.truncate(slot, again.length)
    found = yield Extend(model, slot, again.rows, again.wanted, lambda logits: log_probabilities(logits, answer))
    return read_probabilities(found)


def rank(speaker: Speaker, prompt: PromptTokens, small: SmallSaid | None) -> Asking[np.ndarray | None]:
    """float32 [V]: what ranks the large model's visual tokens; None if nothing does."""
    settings, grid = speaker.settings, speaker.seen.grid
    source = settings.guidance.source
    if settings.wants_guidance() and source.reads_large():
        return (yield from rank_by_itself(speaker, prompt))
    if settings.guided_by(GuidanceSource.RANDOM):
        return random_importance(len(grid.boxes), settings.sampling.seed)
    if small is None or small.importance is None or settings.guided_by(GuidanceSource.TOME):
        return None
    known = small.seen.grid
    if grid.same(known):
        return small.importance
    return resample(small.importance, known.boxes, grid.boxes, known.images, grid.images)


def rank_by_itself(speaker: Speaker, prompt: PromptTokens) -> Asking[np.ndarray]:
    """float32 [V]: how the large model ranks its own visual tokens, in a run that keeps them all."""
    guidance, rows = speaker.settings.guidance, prompt_rows(prompt)
    own = replace(speaker, stages=(Stage.LARGE_SCORES, Stage.LARGE_SCORES))
    with (yield from own.open(rows, wants_scores=True)) as slot:
        if guidance.source is GuidanceSource.ORACLE:
            yield from own.speak(slot, rows, Scored.of(prompt, guidance.score_rows))
            with speaker.watch(Stage.LARGE_SCORES):
                return importance(speaker.model.language.visual_scores(slot), guidance)
        scored = Scored.of(prompt, ScoreRows.LAST_PROMPT).prompt
        with speaker.watch(Stage.LARGE_SCORES):
            yield Extend(speaker.model, slot, rows, NONE, lambda logits: logits, scored)
            assert guidance.prune_layer, "fastv without a layer before prune_layer is refused"
            return fastv_importance(speaker.model.language.visual_scores(slot), guidance.prune_layer)


def keep(settings: Settings, prompt: PromptTokens, ranking: np.ndarray | None) -> Kept:
    """What the large model reads, pruned as the guidance says."""
    guidance, tokens = settings.guidance, len(prompt.visual_positions)
    num_kept = guidance.num_kept(tokens)
    if not settings.wants_guidance() or num_kept == tokens:
        return Kept(prompt_rows(prompt), ranking, None)
    if guidance.source is GuidanceSource.TOME:
        visual, features = prompt.visual_features(), to_host(prompt.features).copy()
        merged = merge(features[visual], num_kept)
        kept = merged.kept
        features[visual[kept]] = merged.features
        prompt = replace(prompt, features=features)
    else:
        assert ranking is not None, "what guides has ranked the tokens before"
        kept = select(ranking, num_kept)
    assert guidance.prune_layer is not None, "guidance is resolved when a question is opened"
    rows = keep_rows(prompt.visual_positions, kept, len(prompt.ids))
    return Kept(prompt_rows(prompt, Pruning(guidance.prune_layer, rows)), ranking, kept)
