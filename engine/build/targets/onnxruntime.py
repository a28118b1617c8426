"""Target `onnxruntime`: an ONNX file beside one file of weights, which the runtime maps into memory."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from engine.build.weight_file import WeightFile
from engine.build.weights import WeightReader, parameters

Progress = Callable[[float], None]


def write_engine(model: ir.Model, reader: WeightReader, path: Path, on_progress: Progress) -> None:
    """Fill the graph's parameters and write `path` (.onnx) and its weights (.weights) beside it."""
    reader.check(model)
    weights = list(parameters(model))
    with WeightFile(path.with_suffix(".weights")) as file:
        for index, (name, weight) in enumerate(weights):
            weight.const_value = file.add(name, reader.read(name, weight))
            on_progress((index + 1) / len(weights))
    ir.save(model, path)
