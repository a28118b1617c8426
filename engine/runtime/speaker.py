"""A model that answers a prompt, from its slot to its last token."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from engine.config import ScoreRows
from engine.runtime.guidance import counts_decode, importance, score_rows
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.prompt import PromptTokens, Rows, answer_rows
from engine.runtime.question import OnText, Settings, Stage, Watch
from engine.runtime.sampling import Sampler, read
from engine.runtime.utterance import Completion, Utterance
from engine.runtime.work import NONE, Asking, Extend, Open, Step


@dataclass(frozen=True)
class Scored:
    """Whose attention counts: these rows of the prompt, and whether those of generated tokens do."""

    prompt: np.ndarray = field(default_factory=lambda: NONE)
    generated: bool = False

    @classmethod
    def of(cls, prompt: PromptTokens, rows: ScoreRows) -> "Scored":
        asked = prompt.question, prompt.feature_rows()
        return cls(score_rows(prompt.visual_positions, len(prompt.ids), rows, *asked), counts_decode(rows))


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

    def importance(self, slot: int) -> np.ndarray:
        """float32 [V]: of a slot's visual tokens, by the rows that were scored."""
        language, guidance = self.model.language, self.settings.guidance
        norms = language.value_norms(slot) if guidance.value_norm else None
        return importance(language.visual_scores(slot), guidance, norms)

    def speak(
        self, slot: int, rows: Rows, scored: Scored, say: OnText = lambda piece: None, draft: np.ndarray = NONE
    ) -> Asking[Completion]:
        """The answer to a prompt. The last token of an answer is never fed back.

        draft: int64 [D], tokens that it may begin with. They are fed behind the prompt, in the same runs; those from
        the first on that are chosen need no step, and the others are dropped.
        """
        sampling, form = self.settings.sampling, self.seen.form
        draft = draft[: sampling.max_new_tokens - 1]
        form.restart()  # a model that guides itself answers twice
        draft = draft[: form.count_possible(draft.tolist())]
        sampler, wanted = Sampler(sampling, form), len(rows) - 1 + np.arange(len(draft) + 1)
        utterance = Utterance(self.model.tokenizer, self.seen.encoded.stop, sampling, say, form)
        prefill, decode = self.stages
        with self.watch(prefill):
            fed = rows.then(answer_rows(rows.next_position(), draft)) if len(draft) else rows
            choose = partial(sampler.choose_each, draft=draft.tolist())
            choices = yield Extend(self.model, slot, fed, wanted, choose, scored.prompt)
        with self.watch(decode):
            accepted, goes_on = 0, utterance.push(read(choices[0]))
            while goes_on and accepted < len(draft) and utterance.last_token() == draft[accepted]:
                accepted += 1
                goes_on = utterance.push(read(choices[accepted]))
            if goes_on and accepted < len(draft):
                self.model.language.truncate(slot, len(rows) + accepted)
                sampler.take_back(len(draft) - accepted)
            while goes_on:
                token = utterance.last_token()
                choice = yield Step(self.model, slot, token, scored.generated, sampler.choose)
                goes_on = utterance.push(read(choice))
        return replace(utterance.completion(), drafted=len(draft), accepted=accepted)
