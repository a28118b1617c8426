"""The decoding loop: a batch of requests until each has its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from engine.config import SamplingConfig
from engine.errors import EngineError, QuestionCancelled
from engine.runtime.arrays import array_namespace, to_host
from engine.runtime.language import Prefilled
from engine.runtime.sampling import Choice, Sampler, read
from engine.runtime.tokenizer import TextStream, Tokenizer

OnText = Callable[[str], None]
IsCancelled = Callable[[], bool]
"""Whether nobody waits for an answer any more; asked once per token."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Completion:
    """One finished answer; tokens, probabilities and entropies include the token that ended it."""

    text: str
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    entropies: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Decoding:
    """How one request of a batch is decoded; `stop` are the template's texts that end an answer."""

    sampling: SamplingConfig
    stop: tuple[str, ...]
    on_text: OnText | None = None
    is_cancelled: IsCancelled | None = None


@dataclass
class Draft:
    """An answer in progress."""

    sampler: Sampler
    stream: TextStream
    decoding: Decoding
    choices: list[Choice] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    done: bool = False
    error: EngineError | None = None

    def push(self, choice: Sequence[float]) -> None:
        """The next token, as its sampler chose it; an error ends this draft and no other."""
        try:
            check_cancelled(self.decoding.is_cancelled)
            self._append(read(choice))
        except EngineError as error:
            self.error, self.done = error, True

    def last_token(self) -> int:
        return self.choices[-1].token if self.choices else 0

    def completion(self) -> Completion | EngineError:
        if self.error is not None:
            return self.error
        return Completion(
            "".join(self.pieces),
            tuple(choice.token for choice in self.choices),
            tuple(choice.probability for choice in self.choices),
            tuple(choice.entropy for choice in self.choices),
            FinishReason.STOP if self.stream.stopped else FinishReason.LENGTH,
        )

    def _append(self, choice: Choice) -> None:
        self.choices.append(choice)
        self._emit(self.stream.push(choice.token))
        if self.stream.stopped or len(self.choices) == self.decoding.sampling.max_new_tokens:
            self._emit(self.stream.flush())
            self.done = True

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            if self.decoding.on_text is not None:
                self.decoding.on_text(text)


def check_cancelled(is_cancelled: IsCancelled | None) -> None:
    """Raises QuestionCancelled."""
    if is_cancelled is not None and is_cancelled():
        raise QuestionCancelled("the question was cancelled by whoever asked it")


def generate(
    generation: Prefilled,
    tokenizer: Tokenizer,
    decodings: Sequence[Decoding],
    scored: np.ndarray,
) -> list[Completion | EngineError]:
    """Decode a prefilled batch. scored: bool [B], whose generated rows add to the visual scores.

    The last token of an answer is never fed back.
    """
    drafts = [
        Draft(Sampler(part.sampling), TextStream(tokenizer, (*part.stop, *part.sampling.stop)), part)
        for part in decodings
    ]
    logits = generation.logits
    while True:
        going = [(draft, row) for draft, row in zip(drafts, logits, strict=True) if not draft.done]
        choices = array_namespace(logits).stack([draft.sampler.choose(row) for draft, row in going])
        # The one place where the host waits for a GPU.
        for (draft, _), choice in zip(going, to_host(choices).tolist(), strict=True):
            draft.push(choice)
        active = np.array([not draft.done for draft in drafts])
        if not active.any():
            return [draft.completion() for draft in drafts]
        tokens = np.array([draft.last_token() for draft in drafts])
        logits = generation.decode(tokens, active, scored)
