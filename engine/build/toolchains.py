"""What builds for each target: one line for each."""

from engine.build.compiler import Compiler, Toolchain
from engine.build.targets import onnxruntime, tensorrt, tensorrt_rtx
from engine.config import BuildConfig
from engine.target import Target

TOOLCHAINS: dict[Target, Toolchain] = {
    Target.ONNXRUNTIME: onnxruntime.TOOLCHAIN,
    Target.TENSORRT_RTX: tensorrt_rtx.TOOLCHAIN,
    Target.TENSORRT: tensorrt.TOOLCHAIN,
}


def open_compiler(build: BuildConfig) -> Compiler:
    """What compiles for the wanted target. Raises EngineError when it cannot, before anything slow."""
    build.target.check(build.precision)
    return TOOLCHAINS[build.target].open_compiler(build)
