"""The decoding loop: a batch of requests until each has its answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from engine.config import SamplingConfig
from engine.runtime.language import Generation
from engine.runtime.sampling import Choice, Sampler
from engine.runtime.tokenizer import TextStream, Tokenizer

OnText = Callable[[str], None]


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


@dataclass
class Draft:
    """An answer in progress."""

    sampler: Sampler
    stream: TextStream
    limit: int
    on_text: OnText | None
    choices: list[Choice] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    done: bool = False

    def push(self, logits: np.ndarray) -> None:
        """Choose the next token."""
        choice = self.sampler.choose(logits)
        self.choices.append(choice)
        self._emit(self.stream.push(choice.token))
        if self.stream.stopped or len(self.choices) == self.limit:
            self._emit(self.stream.flush())
            self.done = True

    def completion(self) -> Completion:
        return Completion(
            "".join(self.pieces),
            tuple(choice.token for choice in self.choices),
            tuple(choice.probability for choice in self.choices),
            tuple(choice.entropy for choice in self.choices),
            FinishReason.STOP if self.stream.stopped else FinishReason.LENGTH,
        )

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            if self.on_text is not None:
                self.on_text(text)


def generate(
    generation: Generation,
    tokenizer: Tokenizer,
    sampling: Sequence[SamplingConfig],
    stops: Sequence[tuple[str, ...]],
    scored: np.ndarray,
    on_text: Sequence[OnText | None],
) -> list[Completion]:
    """Decode a prefilled batch. scored: bool [B], whose generated rows add to the visual scores.

    The last token of an answer is never fed back.
    """
    drafts = [
        Draft(Sampler(config), TextStream(tokenizer, (*stop, *config.stop)), config.max_new_tokens, callback)
        for config, stop, callback in zip(sampling, stops, on_text, strict=True)
    ]
    logits = generation.logits
    while True:
        for draft, row in zip(drafts, logits, strict=True):
            if not draft.done:
                draft.push(row)
        active = np.array([not draft.done for draft in drafts])
        if not active.any():
            return [draft.completion() for draft in drafts]
        tokens = np.array([draft.choices[-1].token for draft in drafts])
        logits = generation.decode(tokens, active, scored)
