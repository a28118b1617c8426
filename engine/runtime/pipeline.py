"""A built pair, ready to answer any number of questions at once."""

import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.config import ExitConfig, GuidanceConfig, PictureConfig, SamplingConfig, ServingConfig, VideoConfig
from engine.engine_directory import read_manifest
from engine.errors import EngineError, RequestError
from engine.families import Turn
from engine.manifest import Manifest
from engine.runtime.answer import Answer
from engine.runtime.clips import ClipSource
from engine.runtime.images import ImageSource
from engine.runtime.loading import kv_memory_here, resolve_device, resolve_threads, small_gpu
from engine.runtime.loop import Loop
from engine.runtime.model import Running, VisionLanguageModel
from engine.runtime.prefix_cache import PrefixCache
from engine.runtime.question import OnText, Question
from engine.runtime.scheduler import Load, Outcome, answered
from engine.runtime.tensor_parallel import Ranks
from engine.runtime.tensor_parallel_group import Group
from engine.runtime.ticket import Ticket, ended
from engine.target import Device
from engine.verification import verify


class LoadedPair:
    """Both models of an engine directory, each loaded when it is first asked for."""

    def __init__(self, directory: Path, manifest: Manifest, running: Running, ranks: Ranks | None) -> None:
        """ranks: of a large model built for several; None makes a group of its own, which starts when it is loaded."""
        self.directory, self.manifest = directory, manifest
        self._running, self._ranks, self.prefixes = running, ranks, running.prefixes
        self._own = Group() if ranks is None and manifest.world_size > 1 else None
        self._models: dict[str, VisionLanguageModel] = {}
        self._loading = threading.RLock()

    @property
    def small(self) -> VisionLanguageModel:
        """The guiding model."""
        return self._load("small")

    @property
    def large(self) -> VisionLanguageModel:
        """The guided model."""
        if self._ranks is not None:
            self._load("small")  # one of the ranks is this process, which from here on has no threads for it
        return self._load("large", self._ranks or self._own)

    def close(self) -> None:
        """End the ranks that it started."""
        if self._own is not None:
            self._own.end()

    def _load(self, role: str, ranks: Ranks | None = None) -> VisionLanguageModel:
        with self._loading:
            if role not in self._models:
                self._models[role] = VisionLanguageModel.load(self.directory, self.manifest, role, self._running, ranks)
            return self._models[role]


class SglPipeline:
    """Answers questions from any number of threads; a thread of its own runs the engines. A context manager."""

    def __init__(self, pair: LoadedPair, serving: ServingConfig, device: Device) -> None:
        """See `load`."""
        self.directory, self.manifest, self.device = pair.directory, pair.manifest, device
        self._pair = pair
        kv_memory = kv_memory_here(device) if serving.kv_memory is None else serving.kv_memory
        self._loop = Loop(pair, serving.max_running, serving.max_waiting, kv_memory, spare=pair.prefixes)
        self.at_once = 2 * serving.max_running
        """Questions of one call that are asked at once: enough that the next one's pictures are open in time."""
        self.close = weakref.finalize(self, _close, self._loop, pair)
        """End what is being answered, the thread and the ranks that were started; also at the interpreter's end."""

    @classmethod
    def load(
        cls,
        directory: Path | str,
        threads: int | None = None,
        preload: bool = True,
        ranks: Ranks | None = None,
        device: Device | None = None,
        *,
        max_running: int = ServingConfig.max_running,
        max_waiting: int = ServingConfig.max_waiting,
        kv_memory: int | None = ServingConfig.kv_memory,
        prefill_chunk: int = ServingConfig.prefill_chunk,
        feature_cache: int = ServingConfig.feature_cache,
        small_apart: bool = ServingConfig.small_apart,
        prefix_cache: int = ServingConfig.prefix_cache,
    ) -> "SglPipeline":
        """Open an engine directory and verify its files. Raises EngineError.

        threads: of the whole process; None takes the cores that it may use. preload: load the models now, not each when
        the first question needs it. ranks: of a large model built for several; None starts them when it is loaded.
        device: what runs the engines; None is what their target is for. The others are the fields of `ServingConfig`.
        """
        directory, threads = Path(directory), resolve_threads(threads)
        caches = feature_cache, small_apart, prefix_cache
        serving = ServingConfig(max_running, max_waiting, kv_memory, prefill_chunk, *caches)
        manifest = read_manifest(directory)
        device = resolve_device(directory, manifest, device)
        apart = small_gpu(directory, manifest, device, small_apart)
        running = Running(threads, device, serving, PrefixCache(prefix_cache), apart)
        pair = LoadedPair(directory, manifest, running, ranks)
        verify(directory, manifest)
        if preload:
            _ = pair.small, pair.large
        return cls(pair, serving, device)

    @property
    def small(self) -> VisionLanguageModel:
        """The guiding model."""
        return self._pair.small

    @property
    def large(self) -> VisionLanguageModel:
        """The guided model."""
        return self._pair.large

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
        system: str | None = None,
        timeout: float | None = None,
        picture: PictureConfig = PictureConfig(),  # noqa: B008 (frozen)
        videos: ClipSource | Sequence[ClipSource] = (),
        video: VideoConfig = VideoConfig(),  # noqa: B008 (frozen)
    ) -> Answer:
        """Answer one question about any number of pictures and clips, after what was said before. Raises
        EngineError.
        """
        pictures = tuple(images) if isinstance(images, list | tuple) else (images,)
        clips = tuple(videos) if isinstance(videos, list | tuple) else (videos,)
        turns = tuple(_several(history, "history", "turns"))
        said = guidance, exit, sampling, on_text, turns, system, timeout
        asked = Question(pictures, question, *said, picture, clips, video)
        with self._loop.submit(asked, waits=True) as ticket:
            for piece in ticket:
                if on_text is not None:
                    on_text(piece)
            return ticket.result()

    def answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer several questions, each with its own settings. Raises the first EngineError of any."""
        return [answered(outcome) for outcome in self.answer_each(questions)]

    def answer_each(self, questions: Sequence[Question]) -> list[Outcome]:
        """Like `answer_batch`; a question that fails has its error as outcome, and no other is touched.

        Each `on_text` is called in this thread; one that raises ends its own question.
        """
        questions = [*_several(questions, "questions", "Question objects")]
        outcomes: dict[int, Outcome] = {}
        asked: dict[int, Ticket] = {}
        news: queue.SimpleQueue[int] = queue.SimpleQueue()
        left = iter(enumerate(questions))
        try:
            while len(outcomes) < len(questions):
                for index, question in islice(left, self.at_once - len(asked)):
                    asked[index] = self._ask(question, tells=True)
                    asked[index].on_change(partial(news.put, index))
                index = news.get()
                ticket = asked.get(index)
                if ticket is None:
                    continue  # its outcome was seen together with its last piece
                is_done = ticket.done()
                if (error := _tell(ticket, questions[index])) is not None:
                    ticket.cancel()
                    outcomes[index] = error
                elif is_done:
                    outcomes[index] = ticket.wait()
                if index in outcomes:
                    del asked[index]
        finally:
            for ticket in asked.values():
                ticket.cancel()
        return [outcomes[index] for index in range(len(questions))]

    def answer_all(self, questions: Iterable[Question]) -> Iterator[Outcome]:
        """The outcome of each, in their order; many at once. Each is made when there is room for it; one with `on_text`
        is refused, as by `submit`."""
        asked: deque[Ticket] = deque()
        try:
            for question in _several(questions, "questions", "Question objects"):
                asked.append(self.ask(question))
                if len(asked) == self.at_once:
                    yield asked.popleft().wait()
            while asked:
                yield asked.popleft().wait()
        finally:
            for ticket in asked:
                ticket.cancel()

    def submit(self, question: Question) -> Ticket:
        """Ask, and go on. Raises Overloaded where too many wait already, or their pictures hold too much memory, and
        RequestError for a question with `on_text`, which nobody would call: the ticket has the text.

        Keep the pipeline, too: when nobody holds it any more, it is closed, and its tickets end.
        """
        _check_question(question)
        _check_silent(question)
        return self._loop.submit(question, waits=False)

    def ask(self, question: Question) -> Ticket:
        """Like `submit`, once there is room; what is wrong with the question at once is its outcome."""
        return self._ask(question, tells=False)

    def load_now(self) -> Load:
        """How busy it is."""
        return self._loop.load()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new questions and wait for those that were asked, so many seconds at most -> whether all ended."""
        return self._loop.drain(timeout)

    def __enter__(self) -> "SglPipeline":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Question, tells: bool) -> Ticket:
        """What is wrong with the question at once is its outcome. tells: whether somebody calls `on_text`."""
        try:
            _check_question(question)
            if not tells:
                _check_silent(question)
            return self._loop.submit(question, waits=True)
        except EngineError as error:
            return ended(error)


def _several(values: Any, name: str, what: str) -> Iterable[Any]:
    """What can be gone through. Raises RequestError."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise RequestError(f"{name} cannot be a {type(values).__name__}; give a list of {what}")
    return values


def _check_question(question: Any) -> None:
    """Raises RequestError."""
    if not isinstance(question, Question):
        raise RequestError(f"a {type(question).__name__} is no question; give a Question")


def _check_silent(question: Question) -> None:
    """Raises RequestError."""
    if question.on_text is not None:
        raise RequestError("on_text is called by answer_batch and answer_each; iterate over a ticket's text instead")


def _close(loop: Loop, pair: LoadedPair) -> None:
    loop.close()
    pair.close()


def _tell(ticket: Ticket, question: Question) -> EngineError | None:
    """Hand on the pieces that came; what is wrong if `on_text` raises."""
    for piece in ticket.take():
        try:
            if question.on_text is not None:
                question.on_text(piece)
        except Exception as error:
            failure = EngineError(f"on_text failed ({error!r}), which ended the question; mend it and ask again")
            failure.__cause__ = error
            return failure
    return None
