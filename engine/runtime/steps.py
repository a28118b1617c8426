"""What one model does for a batch of questions: prefill it, decode it, decide about an early exit."""

from collections.abc import Callable, Sequence

import numpy as np

from engine.errors import EngineError
from engine.runtime.early_exit import ExitDecision, decide
from engine.runtime.generate import Completion, Decoding, generate
from engine.runtime.guidance import select
from engine.runtime.job import Job, Stage, View, timed
from engine.runtime.language import Prefilled
from engine.runtime.model import VisionLanguageModel
from engine.runtime.prompt import Request
from engine.runtime.sampling import token_probabilities


def prefill(
    model: VisionLanguageModel, jobs: Sequence[Job], request: Callable[[Job], Request]
) -> tuple[list[Job], Prefilled | None]:
    """The jobs that have not failed, prefilled; None if there are none."""
    requests: list[tuple[Job, Request]] = []
    for job in jobs:
        if job.error is None:
            with job.fails_alone():
                wanted = request(job)
                model.check_kept(wanted, job.sampling.max_new_tokens)
                requests.append((job, wanted))
    going = [job for job, _ in requests]
    if not going:
        return [], None
    longest = max(job.sampling.max_new_tokens for job in going)
    return going, model.language.prefill([request for _, request in requests], longest)


def complete(
    model: VisionLanguageModel,
    generation: Prefilled,
    jobs: Sequence[Job],
    views: Sequence[View | None],
    scored: np.ndarray,
    streams: bool,
) -> list[Completion | None]:
    """Decode a prefilled batch to its end; fills in the views. None for a job that failed."""
    decodings = []
    for job, view in zip(jobs, views, strict=True):
        assert view is not None
        on_text = job.question.on_text if streams else None
        decodings.append(Decoding(job.sampling, view.encoded.stop, on_text, job.question.is_cancelled))
    completions = []
    outcomes = generate(generation, model.tokenizer, decodings, scored)
    for job, view, outcome in zip(jobs, views, outcomes, strict=True):
        assert view is not None
        if isinstance(outcome, EngineError):
            job.error = outcome
        else:
            view.completion = outcome
        completions.append(view.completion)
    return completions


def decide_exit(job: Job, generation: Prefilled, index: int, completion: Completion) -> ExitDecision:
    """Whether the small model's answer is good enough; runs the consistency pass if the criterion asks for it."""
    agreement = None
    if job.wants_consistency():
        assert job.small_importance is not None
        with timed([job], Stage.CONSISTENCY):
            tokens = np.array(completion.token_ids)
            kept = select(job.small_importance, job.exit.num_kept(len(job.small_importance)))
            agreement = token_probabilities(generation.score(index, kept, tokens), tokens)
    return decide(job.exit, np.array(completion.probabilities), np.array(completion.entropies), agreement)
