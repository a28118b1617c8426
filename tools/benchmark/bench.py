"""What every question of the benchmark is asked with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.benchmark.engines import Model, write_model
from tools.benchmark.interleave import Effort
from tools.benchmark.sizes import Published, Size


@dataclass(frozen=True)
class Bench:
    """size: what is measured. work: directory for checkpoints and engines. loads, runs: None is each question's own.

    on_progress: gets the name of a piece of work and how much of it is done, 0..1.
    """

    size: Size
    work: Path
    threads: int
    loads: int | None
    runs: int | None
    on_progress: Callable[[str, float], None]

    def progress(self, name: str) -> Callable[[float], None]:
        return partial(self.on_progress, name)

    def model(self, role: str, published: Published) -> Model:
        """A random checkpoint, shared by all questions."""
        return write_model(self.work / role, published, self.progress(f"checkpoint {role}"))

    def effort(self, default: Effort) -> Effort:
        """How often a question measures: what the user said, else its own default."""
        return Effort(self.loads or default.loads, self.runs or default.runs)
