"""Target `tensorrt_rtx`: plans that are built on any machine and finished on the GPU that runs them."""

from collections.abc import Mapping
from pathlib import Path

from engine.bindings import SCORING_ENGINE
from engine.build.compiler import Part, Progress
from engine.build.targets.tensorrt_plan import write_plan
from engine.target import Precision, Target
from engine.tensorrt_library import load_library

LEAST_HEADS = 4
"""Query heads of a rank: for fewer the library has no kernel of causal attention."""


class TensorRtRtxCompiler:
    """Raises EngineError when the library is not installed."""

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._version = load_library(Target.TENSORRT_RTX).__version__

    def versions(self) -> Mapping[str, str]:
        return {"tensorrt_rtx": self._version}

    def gpu(self) -> None:
        return None

    def write(self, part: Part, directory: Path, name: str, on_progress: Progress) -> None:
        write_plan(Target.TENSORRT_RTX, self._precision, part, directory, name, on_progress)
        if part.scoring is not None:
            write_plan(Target.TENSORRT_RTX, self._precision, part.scoring, directory, SCORING_ENGINE, on_progress)
