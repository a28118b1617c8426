"""Target `onnxruntime`: an ONNX file beside one file of weights, which the runtime maps into memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engine.bindings import SCORING_ENGINE, VISUAL_FEATURES
from engine.build.compiler import DeclaredEngine, Progress, Toolchain
from engine.build.quantize import BLOCK, INT4_BLOCK, MAX_ERROR, MAX_ERROR_INT4, MatrixKernel
from engine.build.storage import BITS, Storage, activation_bits
from engine.build.targets.onnxruntime_int8 import write_int8_weights
from engine.build.weight_file import WeightFile
from engine.build.weights import WeightReader, parameters
from engine.build_flags import BuildFlag
from engine.config import BuildConfig
from engine.engine_directory import write_json
from engine.errors import EngineError
from engine.parallel import stage_path
from engine.plugins.all_reduce import cut
from engine.target import Precision, Target

REPORT_SUFFIX = ".quantization.json"
MOST_ERROR = {Precision.INT8: MAX_ERROR, Precision.INT4: MAX_ERROR_INT4}
"""Of the kernels that a matrix may get, by precision; a vision encoder is never less than int8."""


@dataclass(frozen=True)
class OnnxRuntimeCompiler:
    """There is nothing to compile: ONNX Runtime optimises a graph when it loads it."""

    precision: Precision

    def versions(self) -> Mapping[str, str]:
        return {"onnxruntime": version("onnxruntime")}

    def gpu(self) -> None:
        return None

    def write(self, declared: DeclaredEngine, directory: Path, name: str, on_progress: Progress) -> None:
        path = (directory / name).with_suffix(Target.ONNXRUNTIME.traits.suffix)
        if self.precision in MOST_ERROR:
            whole = declared.whole() if declared.whole is not None else declared.graph
            is_vision = declared.graph.graph.outputs[0].name == VISUAL_FEATURES
            most_error = MOST_ERROR[Precision.INT8 if is_vision else self.precision]
            write_engine(declared.graph, declared.reader, path, on_progress, declared.calibrate(), whole, most_error)
        else:
            write_engine(declared.graph, declared.reader, path, on_progress)
        if declared.scoring is not None:
            write_scoring_engine(declared.scoring.graph, directory)


def open_compiler(build: BuildConfig) -> OnnxRuntimeCompiler:
    """Raises EngineError for what its ranks could not run."""
    if build.precision is Precision.FP16 and build.world_size > 1:
        raise EngineError(
            f"precision {build.precision} of target {build.target} is for one GPU, and its ranks run on CPUs; "
            f"leave out {BuildFlag.TP}, or choose another precision"
        )
    return OnnxRuntimeCompiler(build.precision)


def storage(precision: Precision) -> Storage:
    """int8: the larger of its two kernels' forms, with a float32 scale for each block; int4 likewise, but its head and
    vision encoders are int8."""
    activation, int8 = activation_bits(Target.ONNXRUNTIME, precision), BITS[Precision.INT8] + 32 / BLOCK
    if precision is Precision.INT4:
        return Storage(4 + 32 / INT4_BLOCK, int8, activation, activation, vision=int8)
    matrix = int8 if precision is Precision.INT8 else BITS[precision]
    return Storage(matrix, matrix, activation, activation)


TOOLCHAIN = Toolchain(open_compiler, storage)


def write_engine(
    model: ir.Model,
    reader: WeightReader,
    path: Path,
    on_progress: Progress,
    calibration: Mapping[str, np.ndarray] | None = None,
    whole: ir.Model | None = None,
    most_error: Mapping[MatrixKernel, float] = MAX_ERROR,
) -> None:
    """Fill the graph's parameters and write `path` (.onnx) and its weights (.weights) beside it.

    The graph of one of several ranks becomes a file per stage, `stage_path`; all share the weights.
    calibration: inputs that the graph is run on to quantize it, with a report beside it; None is float32. whole: the
    graph that runs on them, where `model` is one rank's share of it. most_error: of the kernels that are tried.
    """
    reader.check(model)
    with WeightFile(path.with_suffix(".weights")) as file:
        if calibration is None:
            _write_weights(model, reader, file, on_progress)
        else:
            report = write_int8_weights(model, whole or model, reader, calibration, file, on_progress, most_error)
            write_json(path.with_suffix(REPORT_SUFFIX), report)
    stages = cut(model)
    for index, stage in enumerate(stages):
        ir.save(stage, path if len(stages) == 1 else stage_path(path, index))


def write_scoring_engine(model: ir.Model, directory: Path) -> None:
    """Write the engine beside a language engine's; it has no weights."""
    ir.save(model, directory / f"{SCORING_ENGINE}.onnx")


def _write_weights(model: ir.Model, reader: WeightReader, file: WeightFile, on_progress: Progress) -> None:
    weights = list(parameters(model))
    for index, (name, weight) in enumerate(weights):
        weight.const_value = file.add(name, reader.read(name, weight).astype(weight.numpy_dtype(), copy=False))
        on_progress((index + 1) / len(weights))
