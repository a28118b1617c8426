"""The cascade: the small model answers and scores, exits if it is sure, else the large model runs pruned."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.config import FEATURE_CACHE, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import EngineError, RequestError
from engine.families import Turn
from engine.manifest import read_manifest
from engine.runtime.answer import Answer
from engine.runtime.generate import OnText, check_cancelled
from engine.runtime.guidance import counts_decode, fastv_importance, importance
from engine.runtime.images import ImageSource, open_image
from engine.runtime.job import Job, Question, Stage, View, fail_together, timed
from engine.runtime.loading import resolve_device, resolve_threads
from engine.runtime.model import Encoded, VisionLanguageModel, Visuals, split, split_alike
from engine.runtime.steps import complete, decide_exit, prefill
from engine.runtime.tensor_parallel import Ranks
from engine.target import Device
from engine.verification import verify

Outcome = Answer | EngineError
"""What became of one question of several."""


class SglPipeline:
    """A built pair, ready to answer. One call at a time runs; other threads wait."""

    def __init__(
        self,
        directory: Path,
        threads: int,
        ranks: Ranks | None,
        device: Device | None,
        feature_cache: int,
    ) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self.device = resolve_device(directory, self.manifest, device)
        self._threads, self._ranks, self._feature_cache = threads, ranks, feature_cache
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        directory: Path | str,
        threads: int | None = None,
        preload: bool = True,
        models: Collection[str] = ("small", "large"),
        ranks: Ranks | None = None,
        device: Device | None = None,
        feature_cache: int = FEATURE_CACHE,
    ) -> "SglPipeline":
        """Open an engine directory and verify its files. Raises EngineError.

        threads: of the whole process; None takes the cores that it may use. preload: load the models now, not each when
        the first question needs it. models: those that this process runs; the files of the other are not needed.
        ranks: of a large model built for several; None starts them when it is loaded. device: what runs the engines;
        None is what their target is for. feature_cache: bytes of visual features that each model keeps, for further
        questions about the same pictures.
        """
        pipeline = cls(Path(directory), resolve_threads(threads), ranks, device, feature_cache)
        verify(pipeline.directory, pipeline.manifest, models=models)
        if preload:
            for model in models:
                getattr(pipeline, model)
        return pipeline

    @cached_property
    def small(self) -> VisionLanguageModel:
        """The guiding model."""
        return self._load("small")

    @cached_property
    def large(self) -> VisionLanguageModel:
        """The guided model."""
        if self._ranks is not None:
            _ = self.small  # one of the ranks is this process, which from here on has no threads for it
        return self._load("large", self._ranks)

    def _load(self, role: str, ranks: Ranks | None = None) -> VisionLanguageModel:
        places = self._threads, self.device, ranks
        return VisionLanguageModel.load(self.directory, self.manifest, role, *places, self._feature_cache)

    def answer(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        guidance: GuidanceConfig | None = None,
        exit: ExitConfig | None = None,
        sampling: SamplingConfig | None = None,
        on_text: OnText | None = None,
        history: Sequence[Turn] = (),
    ) -> Answer:
        """Answer one question about any number of pictures, after what was said before. Raises EngineError."""
        pictures = tuple(images) if isinstance(images, list | tuple) else (images,)
        asked = Question(pictures, question, guidance, exit, sampling, on_text, history=tuple(history))
        return self.answer_batch([asked])[0]

    def answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer several questions together, each with its own settings. Raises the first EngineError of any.

        The small model runs them as one batch, then the large model those that did not exit.
        """
        answers = []
        for outcome in self.answer_each(questions):
            if isinstance(outcome, EngineError):
                raise outcome
            answers.append(outcome)
        return answers

    def answer_each(self, questions: Sequence[Question]) -> list[Outcome]:
        """Like `answer_batch`; a question that fails has its error as outcome, and no other is touched."""
        return self._each([self._try_open(question) for question in questions], self._run)

    def answer_small(self, questions: Sequence[Question]) -> list[Outcome]:
        """The cascade's first half: what the small model says, its decision, and the importance."""
        return self._each([self._try_open(question) for question in questions], self._run_small)

    def answer_large(self, questions: Sequence[Question], importance: Sequence[np.ndarray | None]) -> list[Outcome]:
        """The cascade's second half: the large model, guided by each question's importance.

        importance: float32 [V] per question, of the small model's visual tokens; None keeps everything.
        """
        opened = [self._try_open(question, guide) for question, guide in zip(questions, importance, strict=True)]
        for job, guide in zip(opened, importance, strict=True):
            if isinstance(job, Job) and guide is None and job.guidance.source is GuidanceSource.SMALL:
                job.guidance = replace(job.guidance, enabled=False)
        return self._each(opened, self._run_large)

    def _each(self, opened: Sequence[Job | EngineError], run: Callable[[Sequence[Job]], None]) -> list[Outcome]:
        jobs = [job for job in opened if isinstance(job, Job)]
        size = self.manifest.max_batch
        layers = self.manifest.models["large"].config.language.num_layers
        with self._lock:
            for start in range(0, len(jobs), size):
                run(jobs[start : start + size])
        return [job.outcome(layers) if isinstance(job, Job) else job for job in opened]

    def _try_open(self, question: Question, importance: np.ndarray | None = None) -> Job | EngineError:
        try:
            job = self._open(question)
            if importance is not None:
                self._guide(job, importance)
        except EngineError as error:
            return error
        return job

    def _guide(self, job: Job, importance: np.ndarray) -> None:
        """Take over an importance that was computed elsewhere."""
        job.grid = split(self.manifest.models["small"].config, job.images)
        if importance.shape != job.grid.images.shape:
            raise RequestError(
                f"importance has shape {list(importance.shape)}, but the small model has {len(job.grid.images)} visual "
                "tokens for these pictures; send back what it returned"
            )
        job.small_importance = importance

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
        if rest := [job for job in jobs if job.error is None and not job.exits_early()]:
            self._run_large(rest)

    def _run_small(self, jobs: Sequence[Job]) -> None:
        """Answer, score and decide."""
        model = self.small
        with timed(jobs, Stage.SMALL_VISION):
            for job, view in self._look(model, jobs):
                job.small, job.grid = view, view.visuals
        with timed(jobs, Stage.SMALL_PREFILL):
            jobs, generation = prefill(model, jobs, Job.small_request)
        if generation is None:
            return
        with timed(jobs, Stage.SMALL_DECODE):
            scored = np.array([job.wants_small_scores() and counts_decode(job.guidance.score_rows) for job in jobs])
            # What the small model says is not shown before it is known to be the answer.
            completions = complete(model, generation, jobs, [job.small for job in jobs], scored, streams=False)
            for index, job in enumerate(jobs):
                if job.error is None and job.wants_small_scores():
                    with job.fails_alone():
                        job.small_importance = importance(generation.visual_scores(index), job.guidance)
        for index, (job, completion) in enumerate(zip(jobs, completions, strict=True)):
            if completion is None or job.error is not None:
                continue
            with job.fails_alone():
                if job.exit.enabled:
                    job.decision = decide_exit(job, generation, index, completion)
                if job.exits_early() and job.question.on_text is not None:
                    job.question.on_text(completion.text)

    def _run_large(self, jobs: Sequence[Job]) -> None:
        """Answer with the visual tokens that the guidance keeps; when the model fails, so do all of these questions."""
        with fail_together(jobs):
            model = self.large
            with timed(jobs, Stage.LARGE_VISION):
                for job, view in self._look(model, jobs):
                    job.large = view
            for source in GuidanceSource:
                if source.reads_large() and (ranked := [job for job in jobs if job.guided_by(source)]):
                    self._score_large(source, ranked)
            with timed(jobs, Stage.LARGE_PREFILL):
                going, generation = prefill(model, jobs, Job.large_request)
            if generation is None:
                return
            with timed(going, Stage.LARGE_DECODE):
                unscored = np.zeros(len(going), bool)
                complete(model, generation, going, [job.large for job in going], unscored, streams=True)

    def _score_large(self, source: GuidanceSource, jobs: Sequence[Job]) -> None:
        """Let the large model rank its own visual tokens in a run that keeps them all."""
        model = self.large
        with timed(jobs, Stage.LARGE_SCORES):
            jobs, generation = prefill(model, jobs, Job.large_score_request)
            if generation is None:
                return
            if source is GuidanceSource.ORACLE:
                scored = np.array([counts_decode(job.guidance.score_rows) for job in jobs])
                complete(model, generation, jobs, [job.large for job in jobs], scored, streams=False)
            for index, job in enumerate(jobs):
                scores = generation.visual_scores(index)
                if source is GuidanceSource.ORACLE:
                    job.importance = importance(scores, job.guidance)
                else:
                    assert job.guidance.prune_layer, "fastv without a layer before prune_layer is refused"
                    job.importance = fastv_importance(scores, job.guidance.prune_layer)

    def _look(self, model: VisionLanguageModel, jobs: Sequence[Job]) -> list[tuple[Job, View]]:
        """Cut up and encode the pictures and tokenize the prompts of a batch."""
        seen: list[tuple[Job, Visuals, Encoded]] = []
        for job in jobs:
            with job.fails_alone():
                check_cancelled(job.question.is_cancelled)
                visuals, question = self._split(model, job), job.question
                room = job.sampling.max_new_tokens
                seen.append((job, visuals, model.tokenize(question.text, visuals, room, question.history)))
        features = model.encode([visuals for _, visuals, _ in seen]) if seen else []
        return [
            (job, View(visuals, encoded, feature))
            for (job, visuals, encoded), feature in zip(seen, features, strict=True)
        ]

    def _split(self, model: VisionLanguageModel, job: Job) -> Visuals:
        """The pictures of a job cut up for a model; two models that want them alike share the work."""
        if job.grid is not None and split_alike(model.config, self.manifest.models["small"].config):
            return job.grid
        return model.split(job.images)
