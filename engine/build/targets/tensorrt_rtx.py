"""Target `tensorrt_rtx`: plans that are built on any machine and finished on the GPU that runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.bindings import SCORING_ENGINE
from engine.build.compiler import DeclaredEngine, Progress, Toolchain
from engine.build.targets.tensorrt_plan import write_plan
from engine.build.targets.tensorrt_weights import storage
from engine.config import BuildConfig
from engine.target import Precision, Target
from engine.tensorrt_library import load_library

FLAGS = ("REQUIRE_USER_ALLOCATION",)
"""Plans that allocate while they run cannot be recorded as CUDA graphs."""


@dataclass(frozen=True)
class TensorRtRtxCompiler:
    """library: its version."""

    precision: Precision
    library: str

    def versions(self) -> Mapping[str, str]:
        return {Target.TENSORRT_RTX.value: self.library}

    def gpu(self) -> None:
        return None

    def write(self, declared: DeclaredEngine, directory: Path, name: str, on_progress: Progress) -> None:
        engines = {name: declared} | ({} if declared.scoring is None else {SCORING_ENGINE: declared.scoring})
        for file, engine in engines.items():
            write_plan(Target.TENSORRT_RTX, self.precision, engine, directory, file, on_progress, flags=FLAGS)


def open_compiler(build: BuildConfig) -> TensorRtRtxCompiler:
    """Raises EngineError when the library is not installed."""
    return TensorRtRtxCompiler(build.precision, load_library(Target.TENSORRT_RTX).__version__)


TOOLCHAIN = Toolchain(open_compiler, partial(storage, Target.TENSORRT_RTX))
