"""The cascade: the small model answers and scores, exits if it is sure, else the large model runs pruned."""

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.config import ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import RequestError
from engine.manifest import read_manifest, verify
from engine.runtime.answer import Answer
from engine.runtime.early_exit import ExitDecision, decide
from engine.runtime.executor import resolve_threads
from engine.runtime.generate import OnText, generate
from engine.runtime.guidance import counts_decode, fastv_importance, importance, select
from engine.runtime.images import ImageSource, open_image
from engine.runtime.job import Job, Question, Stage, View, timed
from engine.runtime.language import Generation, Request
from engine.runtime.model import VisionLanguageModel, Visuals
from engine.runtime.sampling import token_probabilities


class SglPipeline:
    """A built pair, ready to answer. One call at a time runs; other threads wait."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self._threads = threads
        self._lock = threading.Lock()

    @classmethod
    def load(cls, directory: Path | str, threads: int | None = None, preload: bool = True) -> "SglPipeline":
        """Open an engine directory and verify its files. Raises ManifestError.

        threads: of the whole process; None takes the cores that it may use. preload: load the models now, not each when
        the first question needs it.
        """
        pipeline = cls(Path(directory), resolve_threads(threads))
        verify(pipeline.directory, pipeline.manifest)
        if preload:
            _ = pipeline.small, pipeline.large
        return pipeline

    @cached_property
    def small(self) -> VisionLanguageModel:
        """The guiding model."""
        return VisionLanguageModel.load(self.directory, self.manifest, "small", self._threads)

    @cached_property
    def large(self) -> VisionLanguageModel:
        """The guided model."""
        return VisionLanguageModel.load(self.directory, self.manifest, "large", self._threads)

    def answer(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        guidance: GuidanceConfig | None = None,
        exit: ExitConfig | None = None,
        sampling: SamplingConfig | None = None,
        on_text: OnText | None = None,
    ) -> Answer:
        """Answer one question about any number of pictures. Raises EngineError."""
        pictures = tuple(images) if isinstance(images, list | tuple) else (images,)
        return self.answer_batch([Question(pictures, question, guidance, exit, sampling, on_text)])[0]

    def answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer several questions together, each with its own settings. Raises EngineError.

        The small model runs them as one batch, then the large model those that did not exit.
        """
        jobs = [self._open(question) for question in questions]
        size = self.manifest.max_batch
        layers = self.manifest.models["large"].config.language.num_layers
        with self._lock:
            for start in range(0, len(jobs), size):
                self._run(jobs[start : start + size])
        return [job.answer(layers) for job in jobs]

    def _open(self, question: Question) -> Job:
        guidance = question.guidance or self.manifest.guidance
        large = self.manifest.models["large"]
        if not question.text.strip():
            raise RequestError("the question is empty; ask something")
        if guidance.enabled and guidance.source.reads_large() and not large.scores:
            raise RequestError(
                f"guidance {guidance.source} needs the large model's attention, which {self.directory} was built "
                "without; rebuild with --large-scores"
            )
        return Job(
            question,
            tuple(open_image(source) for source in question.images),
            guidance.resolve(large.config.language.num_layers, large.prune_layers) if guidance.enabled else guidance,
            question.exit or self.manifest.exit,
            question.sampling or SamplingConfig(),
        )

    def _run(self, jobs: Sequence[Job]) -> None:
        if guided := [job for job in jobs if job.wants_small()]:
            self._run_small(guided)
        if rest := [job for job in jobs if not job.exits_early()]:
            self._run_large(rest)

    def _run_small(self, jobs: Sequence[Job]) -> None:
        """Answer, score and decide."""
        model = self.small
        with timed(jobs, Stage.SMALL_VISION):
            views = self._look(model, jobs)
            for job, view in zip(jobs, views, strict=True):
                job.small = view
        with timed(jobs, Stage.SMALL_PREFILL):
            generation = _prefill(model, [job.small_request() for job in jobs], jobs)
        with timed(jobs, Stage.SMALL_DECODE):
            scored = np.array([job.wants_small_scores() and counts_decode(job.guidance.rows) for job in jobs])
            # What the small model says is not shown before it is known to be the answer.
            _complete(model, generation, jobs, views, scored, [None] * len(jobs))
        for index, job in enumerate(jobs):
            if job.wants_small_scores():
                job.small_importance = importance(generation.visual_scores(index), job.guidance)
            if job.exit.enabled:
                job.decision = _decide(job, generation, index)
            if job.exits_early() and job.question.on_text is not None:
                completion = views[index].completion
                assert completion is not None
                job.question.on_text(completion.text)

    def _run_large(self, jobs: Sequence[Job]) -> None:
        """Answer with the visual tokens that the guidance keeps."""
        model = self.large
        with timed(jobs, Stage.LARGE_VISION):
            views = self._look(model, jobs)
            for job, view in zip(jobs, views, strict=True):
                job.large = view
        for source in GuidanceSource:
            if source.reads_large() and (ranked := [job for job in jobs if job.guided_by(source)]):
                self._score_large(source, ranked)
        with timed(jobs, Stage.LARGE_PREFILL):
            generation = _prefill(model, [job.large_request() for job in jobs], jobs)
        with timed(jobs, Stage.LARGE_DECODE):
            unscored = np.zeros(len(jobs), bool)
            _complete(model, generation, jobs, views, unscored, [job.question.on_text for job in jobs])

    def _score_large(self, source: GuidanceSource, jobs: Sequence[Job]) -> None:
        """Let the large model rank its own visual tokens in a run that keeps them all."""
        model = self.large
        with timed(jobs, Stage.LARGE_SCORES):
            generation = _prefill(model, [job.large_score_request() for job in jobs], jobs)
            if source is GuidanceSource.ORACLE:
                views = [view for job in jobs if (view := job.large) is not None]
                scored = np.array([counts_decode(job.guidance.rows) for job in jobs])
                _complete(model, generation, jobs, views, scored, [None] * len(jobs))
            for index, job in enumerate(jobs):
                scores = generation.visual_scores(index)
                if source is GuidanceSource.ORACLE:
                    job.importance = importance(scores, job.guidance)
                else:
                    assert job.guidance.prune_layer, "fastv without a layer before prune_layer is refused"
                    job.importance = fastv_importance(scores, job.guidance.prune_layer)

    def _look(self, model: VisionLanguageModel, jobs: Sequence[Job]) -> list[View]:
        """Cut up and encode the pictures and tokenize the prompts of a batch."""
        visuals = [self._split(model, job) for job in jobs]
        encoded = [
            model.tokenize(job.question.text, part, job.sampling.max_new_tokens)
            for job, part in zip(jobs, visuals, strict=True)
        ]
        features = model.encode(visuals)
        return [View(*parts) for parts in zip(visuals, encoded, features, strict=True)]

    def _split(self, model: VisionLanguageModel, job: Job) -> Visuals:
        """The pictures of a job cut up for a model; two models that want them alike share the work."""
        if job.small is not None and model.splits_like(self.small):
            return job.small.visuals
        return model.split(job.images)


def _prefill(model: VisionLanguageModel, requests: Sequence[Request], jobs: Sequence[Job]) -> Generation:
    return model.language.prefill(requests, max(job.sampling.max_new_tokens for job in jobs))


def _complete(
    model: VisionLanguageModel,
    generation: Generation,
    jobs: Sequence[Job],
    views: Sequence[View],
    scored: np.ndarray,
    on_text: Sequence[OnText | None],
) -> None:
    """Decode a prefilled batch to its end; fills in the views."""
    stops = [view.encoded.stop for view in views]
    sampling = [job.sampling for job in jobs]
    completions = generate(generation, model.tokenizer, sampling, stops, scored, on_text)
    for view, completion in zip(views, completions, strict=True):
        view.completion = completion


def _decide(job: Job, generation: Generation, index: int) -> ExitDecision:
    """Whether the small model's answer is good enough; runs the consistency pass if the criterion asks for it."""
    assert job.small is not None and job.small.completion is not None
    completion, agreement = job.small.completion, None
    if job.wants_consistency():
        assert job.small_importance is not None
        with timed([job], Stage.CONSISTENCY):
            tokens = np.array(completion.token_ids)
            kept = select(job.small_importance, job.exit.num_kept(len(job.small_importance)))
            agreement = token_probabilities(generation.score(index, kept, tokens), tokens)
    return decide(job.exit, np.array(completion.probabilities), np.array(completion.entropies), agreement)
