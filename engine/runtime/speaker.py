"""A model that answers a prompt, from its slot to its last token."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from engine.config import ScoreRows
from engine.runtime.drafter import Drafter
from engine.runtime.form import Form
from engine.runtime.guidance import counts_decode, importance, score_rows
from engine.runtime.lease import Lease
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.prompt import PromptTokens, Rows, answer_rows
from engine.runtime.question import OnText, Settings, Stage, Watch
from engine.runtime.sampling import Sampler, read
from engine.runtime.utterance import Completion, Utterance
from engine.runtime.work import NO_MARKS, NONE, Asking, Extend, Open, Step


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

    def open(self, rows: Rows, wants_scores: bool = False, tokens: int | None = None) -> Asking[Lease]:
        """A slot for the prompt and its answer. tokens: for which there is to be room; None is the answer's most."""
        columns = self.seen.encoded.visual_positions if wants_scores else None
        with self.watch(self.stages[0]):
            need = self.model.need(rows, tokens or self.settings.sampling.max_new_tokens, columns)
            lease: Lease = yield Open(self.model, need)
        return lease

    def importance(self, slot: int) -> np.ndarray:
        """float32 [V]: of a slot's visual tokens, by the rows that were scored."""
        language, guidance = self.model.language, self.settings.guidance
        norms = language.value_norms(slot) if guidance.value_norm else None
        return importance(language.visual_scores(slot), guidance, norms)

    def speak(
        self,
        slot: int,
        rows: Rows,
        scored: Scored,
        say: OnText = lambda piece: None,
        draft: np.ndarray = NONE,
        drafter: Drafter | None = None,
    ) -> Asking[Completion]:
        """The answer to a prompt. The last token of an answer is never fed back.

        draft: int64 [D], tokens that it may begin with. They are fed behind the prompt, in the same runs; those from
        the first on that are chosen need no step, and the others are dropped. drafter: goes on with drafts behind what
        was chosen; rows of generated tokens are not scored then.
        """
        sampling, form = self.settings.sampling, self.seen.form
        form.restart()  # a model that guides itself answers twice
        utterance = Utterance(self.model.tokenizer, self.seen.encoded.stop, sampling, say, form)
        checked = Checked(self.model, slot, utterance, Sampler(sampling, form), form)
        draft = checked.possible(draft, sampling.max_new_tokens - 1)
        with self.watch(self.stages[0]):
            fed = rows.then(answer_rows(rows.next_position(), draft)) if len(draft) else rows
            is_whole = rows.pruning is None and len(rows) == len(self.seen.marks)
            work = checked.check(fed, draft, scored.prompt, self.seen.marks if is_whole else NO_MARKS)
            goes_on = checked.take((yield work), draft)
            reuse = self.watch.reuse
            reuse.tokens, reuse.tokens_known = reuse.tokens + len(rows), reuse.tokens_known + work.known
        if drafter is not None:
            assert not scored.generated, "of rows that a check feeds, those that are dropped would count, too"
            return (yield from self._speculate(checked, drafter, rows.next_position(), goes_on))
        with self.watch(self.stages[1]):
            while goes_on:
                goes_on = yield from checked.step(scored.generated)
        return checked.completion()

    def _speculate(self, checked: "Checked", drafter: Drafter, start: int, goes_on: bool) -> Asking[Completion]:
        """The rest of an answer whose first token is at position `start`, with drafts of it."""
        sampling, prompt = self.settings.sampling, self.seen.encoded.ids.tolist()
        before = checked.drafted, checked.accepted
        while goes_on:
            said = checked.utterance.tokens()
            most = min(sampling.speculate, sampling.max_new_tokens - len(said) - 1)
            with self.watch(Stage.SPECULATION):
                draft = checked.possible((yield from drafter.draft(self.model, prompt, said, most)), most)
            with self.watch(self.stages[1]):
                if len(draft):
                    position, tokens = start + len(said) - 1, np.array([said[-1], *draft])
                    goes_on = checked.take((yield checked.check(answer_rows(position, tokens), draft)), draft)
                else:
                    goes_on = yield from checked.step()
        drafted, accepted = checked.drafted - before[0], checked.accepted - before[1]
        return replace(checked.completion(), speculated=drafted, speculated_accepted=accepted)


@dataclass
class Checked:
    """An answer in progress, and what of drafts was found to be its own. held: rows of the slot."""

    model: VisionLanguageModel
    slot: int
    utterance: Utterance
    sampler: Sampler
    form: Form
    held: int = 0
    drafted: int = 0
    accepted: int = 0

    def possible(self, draft: np.ndarray, most: int) -> np.ndarray:
        """[D] -> those of a draft, from the first, `most` at most, that may come next and be followed by another."""
        draft = draft[:most]
        return draft[: self.form.count_possible(draft.tolist())]

    def check(self, rows: Rows, draft: np.ndarray, scored: np.ndarray = NONE, marks: np.ndarray = NO_MARKS) -> Extend:
        """Append rows, of which the last ones are a draft; `take` gets the choices. marks: as of `Extend`."""
        wanted = len(rows) - 1 - len(draft) + np.arange(len(draft) + 1)
        self.held += len(rows)
        choose = partial(self.sampler.choose_each, draft=draft.tolist())
        return Extend(self.model, self.slot, rows, wanted, choose, scored, marks)

    def take(self, choices: np.ndarray, draft: np.ndarray) -> bool:
        """Keep what is chosen of a draft, and drop the rest of it -> whether the answer goes on.

        Raises EngineError when the logits were no numbers.
        """
        length = len(draft)
        accepted, goes_on = 0, self.utterance.push(read(choices[0]))
        while goes_on and accepted < length and self.utterance.last_token() == draft[accepted]:
            accepted += 1
            goes_on = self.utterance.push(read(choices[accepted]))
        self.held -= length - accepted
        if goes_on and accepted < length:
            self.model.language.truncate(self.slot, self.held)
            self.sampler.take_back(length - accepted)
        self.drafted, self.accepted = self.drafted + length, self.accepted + accepted
        return goes_on

    def step(self, scored: bool = False) -> Asking[bool]:
        """Append the last token -> whether the answer goes on."""
        token = self.utterance.last_token()
        choice = yield Step(self.model, self.slot, token, scored, self.sampler.choose)
        self.held += 1
        return self.utterance.push(read(choice))

    def completion(self) -> Completion:
        return replace(self.utterance.completion(), drafted=self.drafted, accepted=self.accepted)
