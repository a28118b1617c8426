"""What an answer may be, token by token; `grammar` has forms that a schema gives."""

from collections.abc import Sequence

from engine.runtime.arrays import Array


class Form:
    """Of one answer: this one lets it be anything."""

    is_over = False
    """Whether nothing may follow."""

    def end_with(self, tokens: Sequence[int]) -> None:
        """These end it, where it may end."""

    def mask(self, logits: Array) -> Array:
        """[vocab] -> [vocab]: -inf for tokens that may not come next."""
        return logits

    def take(self, token: int) -> None:
        """The next token, one that may come next."""

    def take_back(self, tokens: int) -> None:
        """The last ones that were taken were not said."""

    def restart(self, tokens: Sequence[int] = ()) -> None:
        """From the first token, or behind these."""

    def count_possible(self, tokens: Sequence[int]) -> int:
        """How many of these, from the first, may come next, and be followed by another."""
        return len(tokens)
