"""What a model says, token by token."""

from dataclasses import dataclass
from enum import StrEnum

from engine.config import SamplingConfig
from engine.runtime.form import Form
from engine.runtime.question import OnText
from engine.runtime.sampling import Choice, TopToken
from engine.runtime.tokenizer import TextStream, Tokenizer


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Completion:
    """One finished answer; tokens, and what is known of each, include the token that ended it.

    drafted: tokens that the model was shown before it said them; accepted: how many of them, from the first of each
    draft, it would have said, each of which spared it a step. speculated, speculated_accepted: those of them that were
    drafted behind what it had said.
    """

    text: str
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    entropies: tuple[float, ...]
    top: tuple[tuple[TopToken, ...], ...]
    finish_reason: FinishReason
    drafted: int = 0
    accepted: int = 0
    speculated: int = 0
    speculated_accepted: int = 0

    def to_check(self) -> tuple[int, ...]:
        """Its tokens that another model may be shown: behind the one that ended it, nothing follows."""
        return self.token_ids[:-1] if self.finish_reason is FinishReason.STOP else self.token_ids


class Utterance:
    """An answer in progress. `stop` are the template's texts that end it; `say` gets each piece that is final; `form`
    says when it is whole."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...], sampling: SamplingConfig, say: OnText, form: Form
    ) -> None:
        self._stream = TextStream(tokenizer, (*stop, *sampling.stop))
        self._most, self._say, self._form = sampling.max_new_tokens, say, form
        self._is_whole = False
        self._choices: list[Choice] = []
        self._pieces: list[str] = []

    def push(self, choice: Choice) -> bool:
        """The next token -> whether there is another to come."""
        self._choices.append(choice)
        self._emit(self._stream.push(choice.token))
        if not self._stream.stopped:
            self._form.take(choice.token)
        self._is_whole = self._stream.stopped or self._form.is_over
        if self._is_whole or len(self._choices) == self._most:
            self._emit(self._stream.flush())
            return False
        return True

    def tokens(self) -> list[int]:
        """So far."""
        return [choice.token for choice in self._choices]

    def last_token(self) -> int:
        return self._choices[-1].token

    def completion(self) -> Completion:
        return Completion(
            "".join(self._pieces),
            tuple(choice.token for choice in self._choices),
            tuple(choice.probability for choice in self._choices),
            tuple(choice.entropy for choice in self._choices),
            tuple(choice.top for choice in self._choices),
            FinishReason.STOP if self._is_whole else FinishReason.LENGTH,
        )

    def _emit(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._say(text)
