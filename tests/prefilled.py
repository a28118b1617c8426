"""Prompts in slots of a language engine, for tests that look at logits and scores."""

from collections.abc import Sequence

import numpy as np

from engine.dims import UNBOUNDED, Limits
from engine.runtime.arrays import to_host
from engine.runtime.language import Language, cut
from engine.runtime.prompt import Need, PromptTokens, Pruning, Rows, prompt_rows, reread, within

NOTHING = np.empty(0, np.int64)
WHOLE = 1 << 20
"""Rows of one run: all."""


class Prefilled:
    """A prompt in a slot, and an answer behind it. logits [vocab]: of the last token."""

    def __init__(
        self,
        language: Language,
        prompt: PromptTokens,
        new_tokens: int,
        pruning: Pruning | None = None,
        scored: np.ndarray | None = None,
        prune_layers: Sequence[int] = (),
        chunk: int = WHOLE,
        limits: Limits = UNBOUNDED,
    ) -> None:
        """scored: rows that count; None of an engine without scores. chunk: rows of one run. limits: of a plan."""
        self.language, self.prompt, self._chunk, self._limits = language, prompt, chunk, limits
        rows = prompt_rows(prompt, pruning)
        lengths = tuple(len(kept) + new_tokens for kept in rows.kept(prune_layers))
        self.need = Need(lengths, None if scored is None else prompt.visual_positions)
        self.slot = language.open(self.need)
        last = np.array([len(rows) - 1])
        self.logits = self._extend(rows, last, NOTHING if scored is None else scored)[0]

    def decode(self, tokens: Sequence[int] | np.ndarray, scored: bool = False) -> np.ndarray:
        """[G] -> [G+1,vocab]: the logits after the prompt and after each token that is fed."""
        return np.stack([self.logits, *(step([self], int(token), [scored])[0] for token in tokens)])

    def score(self, kept: Sequence[int] | np.ndarray, answer: np.ndarray) -> np.ndarray:
        """[N], [G] -> [G,vocab]: of each answer token when only these visual tokens are seen; ends the answer."""
        text = np.setdiff1d(np.arange(len(self.prompt.ids)), self.prompt.visual_positions)
        rows = np.union1d(text, self.prompt.visual_positions[np.asarray(kept)])
        again = reread(self.prompt, rows, answer)
        self.language.truncate(self.slot, again.length)
        return self._extend(again.rows, again.wanted, NOTHING)

    def visual_scores(self) -> np.ndarray:
        return np.array(to_host(self.language.visual_scores(self.slot)))

    def close(self) -> None:
        self.language.close(self.slot)

    def _extend(self, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        found = []
        for part in cut(rows, wanted, scored, self._chunk, self._limits):
            inside = (of[within(of, part)] - part.start for of in (wanted, scored))
            found.append(np.array(to_host(self.language.extend(self.slot, rows.part(part), *inside))))
        return np.concatenate(found)


def step(prefilled: Sequence[Prefilled], tokens: int | Sequence[int], scored: Sequence[bool]) -> np.ndarray:
    """[B,vocab]: feed each of them a token, or all the same one."""
    slots = [one.slot for one in prefilled]
    fed = np.broadcast_to(np.asarray(tokens, np.int64), len(slots))
    return np.array(to_host(prefilled[0].language.step(slots, fed, np.array(scored))))
