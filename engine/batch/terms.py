"""What lines are read by and under, what a line is once it is read, and what one that asks nothing is answered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine.batch.lines import Line
from engine.batch.tally import Tally
from engine.config import ExitConfig
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.options import QuestionConfig
from engine.runtime.answer import Answer
from engine.runtime.image_url import NO_HOST, Hosts
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.tensor_parallel import identify

Reply = dict[str, Any]
Report = Callable[[Answer, ExitConfig], dict[str, Any]]


@dataclass(frozen=True)
class Terms:
    """What lines are read under. report: an answer in JSON, for the short form."""

    model: str
    path: Path
    """Of the questions; pictures' paths are relative to where it lies."""
    report: Report
    default: QuestionConfig = field(default_factory=QuestionConfig)
    """Of lines that say nothing else."""
    image_hosts: Hosts = NO_HOST
    """From which http(s) pictures and clips are fetched."""
    max_pictures: int = 16
    timeout: float | None = None
    """Seconds for a question that names no others; None is no end."""
    started: int = 0
    """When the run began, in seconds since 1970."""
    max_clips: int = 4


class Request(Protocol):
    """A line, read."""

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply: ...

    def counted(self, answer: Answer) -> Tally: ...

    def failed(self, error: Exception) -> Reply:
        """Raises RunFailed where one that fails ends all."""


class LineRequest(Request, Protocol):
    """Of a file's line."""

    @property
    def question(self) -> Question:
        """Without its pictures and clips."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Paths and URLs."""

    @property
    def clips(self) -> tuple[str, ...]:
        """Paths and URLs."""


Read = TypeVar("Read", bound=Request)


class Reader(Protocol[Read]):
    """Makes questions of lines; every rank has one."""

    def agreed(self) -> dict[str, Any]:
        """What answers depend on beside the engine, in JSON: the same on every rank."""

    def look_at(self, content: bytes, line: Line) -> Line:
        """With the picture that it is about. Raises EngineError where no such line can be read."""

    def read(self, content: bytes, number: int) -> Read:
        """number: of the line, from 1. Raises BadLine, and RunFailed."""

    def question(self, request: Read) -> Question:
        """With its pictures. Raises EngineError."""


def versions(manifest: Manifest) -> dict[str, str]:
    """Of the program and the packages that answers, and their form, depend on."""
    identity = identify(manifest)
    found = {"sgl-engine": identity.engine_version} | identity.versions
    return {name: version for name, version in found.items() if name != "mpi4py"}


class RunFailed(EngineError):
    """What ends a run, on whatever rank it is found."""


class BadLine(Exception):
    """A line that asks nothing, and what is answered to it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


def bad_line(number: int, message: str, name: object = None) -> BadLine:
    """number: of the line, from 1. name: the question's, where it has one."""
    error = {"code": "invalid_line", "message": f"line {number}: {message}", "line": number}
    custom_id = name if isinstance(name, str) else None
    return BadLine({"id": f"batch_req_{number}", "custom_id": custom_id, "response": None, "error": error})
