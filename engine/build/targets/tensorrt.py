"""Target `tensorrt`: plans that are tuned on the GPU of this machine, for GPUs of that kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.build.compiler import DeclaredEngine, Progress, Toolchain
from engine.build.targets.tensorrt_plan import write_plan
from engine.build.targets.tensorrt_weights import storage
from engine.config import BuildConfig
from engine.errors import EngineError
from engine.gpu import CAPABILITIES, find_gpu
from engine.target import Device, Precision, Target, targets_for
from engine.tensorrt_library import load_library

TIMING_CACHE_SUFFIX = ".timing"


@dataclass(frozen=True)
class TensorRtCompiler:
    """What was measured while it tuned is kept beside each plan, so that the next build measures only what is new.

    library, triton: versions of the library and of the compiler of our plugins; tuned_for: the kind of GPU.
    """

    precision: Precision
    library: str
    triton: str
    tuned_for: str

    def versions(self) -> Mapping[str, str]:
        return {Target.TENSORRT.value: self.library, "triton": self.triton}

    def gpu(self) -> str:
        return self.tuned_for

    def write(self, declared: DeclaredEngine, directory: Path, name: str, on_progress: Progress) -> None:
        file = f"{name}{TIMING_CACHE_SUFFIX}"
        timing = declared.previous / file, directory / file
        write_plan(Target.TENSORRT, self.precision, declared, directory, name, on_progress, timing=timing)


def open_compiler(build: BuildConfig) -> TensorRtCompiler:
    """Raises EngineError when the library or the compiler of our plugins is not installed, or there is no such GPU."""
    library, triton, gpu = load_library(Target.TENSORRT).__version__, triton_version(), find_gpu()
    if gpu.capability() not in CAPABILITIES:
        raise EngineError(
            f"target {Target.TENSORRT} has no kernels for the GPU here, {gpu}; build for target "
            f"{targets_for(Device.CUDA)[0]}, or for target {targets_for(Device.CPU)[0]} in {Precision.FP16}"
        )
    return TensorRtCompiler(build.precision, library, triton, str(gpu))


def triton_version() -> str:
    """Of the compiler of our plugins' kernels."""
    try:
        return version("triton")
    except PackageNotFoundError:
        raise EngineError(
            f"target {Target.TENSORRT} compiles kernels with triton, which is not installed; "
            "pip install 'sgl-engine[tensorrt]'"
        ) from None


TOOLCHAIN = Toolchain(open_compiler, partial(storage, Target.TENSORRT))
