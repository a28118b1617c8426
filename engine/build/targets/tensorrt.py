"""Target `tensorrt`: plans that are tuned on the GPU of this machine, for GPUs of that kind."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from engine.build.compiler import Part, Progress
from engine.build.gpu import find_gpu
from engine.build.targets.tensorrt_library import load_library
from engine.build.targets.tensorrt_plan import write_plan
from engine.config import Precision, Target
from engine.plugins.function import PLUGIN

TIMING_CACHE_SUFFIX = ".timing"


class TensorRtCompiler:
    """What was measured while it tuned is kept beside each plan, so that the next build measures only what is new.

    Raises EngineError when the library is not installed, or no GPU is there.
    """

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._version = load_library(Target.TENSORRT).__version__
        self._gpu = find_gpu()

    def versions(self) -> Mapping[str, str]:
        return {"tensorrt": self._version}

    def gpu(self) -> str:
        return str(self._gpu)

    def write(self, part: Part, directory: Path, name: str, on_progress: Progress) -> None:
        file = f"{name}{TIMING_CACHE_SUFFIX}"
        timing = part.previous / file, directory / file
        capability = self._gpu.capability if uses_plugins(part.graph) else None
        write_plan(Target.TENSORRT, self._precision, part, directory, name, on_progress, timing, capability)


def uses_plugins(graph: ir.Model) -> bool:
    """Whether an op's body consists of plugins of ours."""
    return any(PLUGIN.keys() <= node.attributes.keys() for function in graph.functions.values() for node in function)
