"""One question from top to bottom: the small model answers and scores, exits if it is sure, else the large one answers
with the visual tokens that matter.

A generator: it yields the work that it needs done (`work`) and is sent the results; who else is asked at the same time
it does not know.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from engine.config import Draft, GuidanceSource, SamplingConfig
from engine.manifest import Manifest
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.drafter import Drafter
from engine.runtime.early_exit import ExitDecision, decide
from engine.runtime.form import Form
from engine.runtime.guidance import (
    keep_rows,
    select,
)
from engine.runtime.model import Media, Seen, VisionLanguageModel, split_alike
from engine.runtime.prompt import PromptTokens, prompt_rows, reread
from engine.runtime.question import Meter, OnText, Question, Reuse, Settings, Stage, Watch, settle
from engine.runtime.retention import Choice, choose, merged, pruned_rows, rank, rank_by_itself
from engine.runtime.sampling import log_probabilities, read_probabilities
from engine.runtime.speaker import Scored, Speaker
from engine.runtime.utterance import Completion, FinishReason
from engine.runtime.work import NONE, Asking, Encode, Extend, Outside


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
    drafter: Drafter | None
    """Where it is to go on from what the large model says."""

    def exits_early(self) -> bool:
        return self.decision is not None and self.decision.early_exit


@dataclass(frozen=True)
class LargeSaid:
    seen: Seen
    completion: Completion
    choice: Choice
    tiles_skipped: int


def answer(question: Question, pair: Pair, say: OnText, meter: Meter) -> Asking[Answer]:
    """Raises EngineError. say: gets the answer piece by piece. meter: whoever runs the engines counts there."""
    settings, watch, small, large = settle(question, pair.manifest), Watch(meter), None, None
    if settings.wants_small():
        small = yield from ask_small(question, settings, pair.small, watch)
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
        tiles=sum(len(part.pixels) for part in said.seen.pieces),
        tiles_skipped=large.tiles_skipped if large else 0,
        guidance=settings.guidance if large and large.choice.kept is not None else None,
        kept=large.choice.kept if large else None,
        budget=large.choice.budget if large else None,
        importance=large.choice.importance if large else said.importance,  # type: ignore[union-attr]
        boxes=said.seen.grid.boxes,
        images=said.seen.grid.images,
        times=said.seen.grid.times,
        clips=said.seen.media.clips,
        token_ids=said.completion.token_ids,
        probabilities=said.completion.probabilities,
        top=said.completion.top,
        drafted=said.completion.drafted,
        accepted=said.completion.accepted,
        speculated=said.completion.speculated,
        speculated_accepted=said.completion.speculated_accepted,
        num_layers=pair.manifest.models["large"].config.language.num_layers,
        seconds=watch.seconds,
        engine_seconds=watch.engine_seconds,
        reuse=watch.reuse,
    )


def is_cut_off(said: Completion, sampling: SamplingConfig) -> bool:
    """Whether the small model would have gone on, had it been asked for the answer only."""
    return said.finish_reason is FinishReason.LENGTH and len(said.token_ids) < sampling.max_new_tokens


def ask_small(question: Question, asked: Settings, model: VisionLanguageModel, watch: Watch) -> Asking[SmallSaid]:
    """Answer, score and decide. What it says is not shown before it is known to be the answer."""
    settings, ranking, decision, drafter = asked.of_small(), None, None, None
    with watch(Stage.SMALL_VISION):
        seen = yield from open_pictures(model, question, settings)
        prompt = (yield from look(model, seen, watch.reuse)).prompt
    speaker = Speaker(model, seen, settings, watch, (Stage.SMALL_PREFILL, Stage.SMALL_DECODE))
    rows, wants_scores = prompt_rows(prompt), settings.wants_small_scores()
    length, tokens = len(rows), settings.sampling.max_new_tokens
    if asked.speculates():
        tokens = max(tokens, min(asked.sampling.max_new_tokens, model.limits.max_tokens - length))
    lease = yield from speaker.open(rows, wants_scores, tokens)
    with ExitStack() as held:
        slot = held.enter_context(lease)
        scored = Scored.of(prompt, settings.guidance.score_rows) if wants_scores else Scored()
        completion = yield from speaker.speak(slot, rows, scored)
        if wants_scores:
            with watch(Stage.SMALL_DECODE):
                ranking = speaker.importance(slot)
        if settings.exit.enabled:
            agreement = None
            if settings.wants_consistency():
                assert ranking is not None
                with watch(Stage.CONSISTENCY):
                    kept = select(ranking, settings.exit.num_kept(len(ranking)))
                    again = np.array(completion.token_ids)
                    agreement = yield from agree(model, slot, prompt, kept, again, seen.form)
                    length -= len(ranking) - len(kept)
            said = np.array(completion.probabilities), np.array(completion.entropies)
            decision = decide(settings.exit, *said, agreement)
            if is_cut_off(completion, asked.sampling):
                decision = replace(decision, early_exit=False)
        if asked.speculates() and not (decision and decision.early_exit):
            held.pop_all()  # the slot ends with the question
            lease.offer()
            answer, sampling = list(completion.token_ids[:-1]), replace(asked.sampling, top_logprobs=0)
            seen.form.restart(answer)
            drafter = Drafter(model, lease, seen, sampling, length, prompt.next_position(), answer)
    return SmallSaid(seen, completion, ranking, decision, drafter)


def ask_large(
    question: Question, settings: Settings, pair: Pair, small: SmallSaid | None, watch: Watch, say: OnText
) -> Asking[LargeSaid]:
    """Answer with the visual tokens that the guidance keeps."""
    model, guidance, media, draft = pair.large, settings.guidance, None, NONE
    if small is not None and split_alike(model.config, pair.manifest.models["small"].config):
        media = small.seen.media
    with watch(Stage.LARGE_VISION):
        seen = yield from open_pictures(model, question, settings, media)
    speaker = Speaker(model, seen, settings, watch, (Stage.LARGE_PREFILL, Stage.LARGE_DECODE))
    if settings.wants_guidance() and guidance.source.reads_large():
        with watch(Stage.LARGE_VISION):
            looked = yield from look(model, seen, watch.reuse)
        choice = choose(settings, (yield from rank_by_itself(speaker, looked.prompt)), seen.grid)
    else:
        known, scores = (None, None) if small is None else (small.seen.grid, small.importance)
        choice = choose(settings, rank(settings, seen.grid, known, scores), seen.grid)
        with watch(Stage.LARGE_VISION):
            looked = yield from look(model, seen, watch.reuse, choice.needed(guidance))
    prompt = looked.prompt
    if settings.guided_by(GuidanceSource.TOME):
        prompt, choice = merged(guidance, prompt)
    if small is not None and settings.sampling.draft is Draft.SMALL:
        said = small.completion.to_check()
        draft = np.array(model.read_as_own(seen.encoded.ids.tolist(), pair.small.tokenizer, said), np.int64)
    rows = pruned_rows(prompt, guidance, choice)
    with (yield from speaker.open(rows)) as slot:
        completion = yield from speaker.speak(slot, rows, Scored(), say, draft, small.drafter if small else None)
    return LargeSaid(seen, completion, choice, looked.skipped)


def open_pictures(
    model: VisionLanguageModel, question: Question, settings: Settings, media: Media | None = None
) -> Asking[Seen]:
    """Cut up pictures and clips and tokenize the prompt. media: where another model cut them up alike."""
    said = settings.sampling.max_new_tokens, question.history, question.system
    asked = question.images, question.text, *said, question.picture, question.videos, question.video
    schema = settings.sampling.json_schema
    seen: Seen = yield Outside(partial(model.look, *asked, media, question.timeout, schema))
    return seen


@dataclass(frozen=True)
class Looked:
    """A prompt with its features. skipped: pieces that were not encoded, as nothing of them is needed."""

    prompt: PromptTokens
    skipped: int


def look(model: VisionLanguageModel, seen: Seen, reuse: Reuse, needed: np.ndarray | None = None) -> Asking[Looked]:
    """Encode what is seen. reuse: counts it. needed: int64 [N], the visual tokens whose features are wanted, sorted;
    None is all.

    A piece's features follow from that piece alone, so those of which none is wanted are left out; where rows come of
    several pieces, none is.
    """
    features, encoded, skipped, start = [], [], 0, 0
    for part in seen.pieces:
        count, tokens = len(part.pixels), len(part.boxes)
        wanted, each = np.arange(count), tokens // count
        if needed is not None and part.packing is None:
            mine = needed[(needed >= start) & (needed < start + tokens)] - start
            wanted = np.unique(mine // each)
        if len(wanted):
            work = Encode(model, part, wanted)
            features.append((yield work))
            reuse.tiles, reuse.tiles_known = reuse.tiles + len(wanted), reuse.tiles_known + work.known
        encoded.append((start + wanted[:, None] * each + np.arange(each)).ravel())
        skipped += count - len(wanted)
        start += tokens
    having = np.concatenate(encoded) if skipped else None
    return Looked(seen.prompt(features, model.config.vision.output_size, having), skipped)


def agree(
    model: VisionLanguageModel, slot: int, prompt: PromptTokens, kept: np.ndarray, answer: np.ndarray, form: Form
) -> Asking[np.ndarray]:
    """[N], [G] -> float64 [G]: the probabilities of an answer's tokens if only these visual tokens are seen (eq. 8).
    form: of the answer.

    One parallel pass that goes on from the text before the pictures.
    """
    again = reread(prompt, keep_rows(prompt.visual_positions, kept, len(prompt.ids)), answer)
    model.language.truncate(slot, again.length)
    found = yield Extend(model, slot, again.rows, again.wanted, lambda logits: log_probabilities(logits, answer, form))
    return read_probabilities(found)
