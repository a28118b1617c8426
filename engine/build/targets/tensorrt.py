"""Target `tensorrt`: plans that are tuned on the GPU of this machine, for GPUs of that kind."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.build.compiler import Part, Progress
from engine.build.targets.tensorrt_plan import write_plan
from engine.errors import EngineError
from engine.gpu import CAPABILITIES, find_gpu
from engine.target import Precision, Target
from engine.tensorrt_library import load_library

TIMING_CACHE_SUFFIX = ".timing"


class TensorRtCompiler:
    """What was measured while it tuned is kept beside each plan, so that the next build measures only what is new.

    Raises EngineError when the library or the compiler of our plugins is not installed, or no GPU is there.
    """

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._version = load_library(Target.TENSORRT).__version__
        self._triton = triton_version()
        self._gpu = find_gpu()
        if self._gpu.capability() not in CAPABILITIES:
            raise EngineError(
                f"target {Target.TENSORRT} has no kernels for the GPU here, {self._gpu}; build for target "
                f"{Target.TENSORRT_RTX}, or for target {Target.ONNXRUNTIME} in {Precision.FP16}"
            )

    def versions(self) -> Mapping[str, str]:
        return {"tensorrt": self._version, "triton": self._triton}

    def gpu(self) -> str:
        return str(self._gpu)

    def write(self, part: Part, directory: Path, name: str, on_progress: Progress) -> None:
        file = f"{name}{TIMING_CACHE_SUFFIX}"
        timing = part.previous / file, directory / file
        write_plan(Target.TENSORRT, self._precision, part, directory, name, on_progress, timing)


def triton_version() -> str:
    """Of the compiler of our plugins' kernels."""
    try:
        return version("triton")
    except PackageNotFoundError:
        raise EngineError(
            f"target {Target.TENSORRT} compiles kernels with triton, which is not installed; "
            "pip install 'sgl-engine[tensorrt]'"
        ) from None
