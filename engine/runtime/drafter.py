"""Speculation: the small model goes on from what the large one has said, in the slot in which it answered before.

What it drafts changes no token of the answer, only how many of them one run of the large model gives. So whatever its
slot holds of the prompt will do: the whole, or what the consistency pass left of it.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

import numpy as np

from engine.config import SamplingConfig
from engine.runtime.lease import Lease
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.prompt import answer_rows
from engine.runtime.sampling import Sampler, read
from engine.runtime.work import NONE, Asking, Extend, Step


@dataclass
class Drafter:
    """The small model behind its own answer. rows: of its slot, that are no answer; position: of the first token behind
    them; held: tokens of an answer that the slot holds, and that the form has taken."""

    model: VisionLanguageModel
    lease: Lease
    seen: Seen
    sampling: SamplingConfig
    rows: int
    position: int
    held: list[int] = field(default_factory=list)

    def draft(self, large: VisionLanguageModel, prompt: list[int], said: list[int], most: int) -> Asking[np.ndarray]:
        """int64 [D], `most` at most: what may follow what the large model said, in its tokens. prompt: its own, [S].

        Nothing where the small model would say no more, where its slot was taken away or is full, and where one model's
        tokens have no text that the other could read. Under a schema, what it lets come next.
        """
        if not self.lease.claim():
            return NONE
        known = self.model.read_as_own(self.seen.encoded.ids.tolist(), large.tokenizer, said)
        most = min(most, self.lease.need.lengths[0] - self.rows - len(known))
        if not known or most < 1:
            return NONE
        drafted = yield from self._say(known, len(said), most)
        return np.array(large.read_as_own([*prompt, *said], self.model.tokenizer, drafted, known)[:most], np.int64)

    def _say(self, known: list[int], said: int, most: int) -> Asking[list[int]]:
        """Tokens that it says behind these. said: how many the large model has chosen."""
        form = self.seen.form
        sampler = Sampler(self.sampling, form)
        sampler.skip(said)  # a drawn token is guessed best with the number that it will be drawn with
        shared = min(_common(self.held, known), len(known) - 1)
        slot, missing = self.lease.slot, known[shared:]
        if shared < len(self.held):
            self.model.language.truncate(slot, self.rows + shared)
            form.take_back(len(self.held) - shared)
            self.held = known[:shared]
        if form.count_possible(missing) < len(missing):
            return []
        for token in missing:
            form.take(token)
        if len(missing) == 1:
            choice = yield Step(self.model, slot, missing[0], False, sampler.choose)
        else:
            rows, last = answer_rows(self.position + shared, np.array(missing)), np.array([len(missing) - 1])
            (choice,) = yield Extend(self.model, slot, rows, last, partial(sampler.choose_each, draft=()))
        self.held, drafted = known, []
        while self.model.tokenizer.special(token := read(choice).token) not in self.seen.encoded.stop:
            drafted.append(token)
            if len(drafted) == most:
                break
            form.take(token)
            if form.is_over:
                form.take_back(1)
                break
            choice = yield Step(self.model, slot, token, False, sampler.choose)
            self.held = [*self.held, token]
        return drafted


def _common(one: list[int], other: list[int]) -> int:
    """How many of their first tokens are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
