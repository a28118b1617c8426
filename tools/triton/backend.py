"""What the three models share of Triton's Python backend."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from engine.config import SamplingConfig
from engine.errors import EngineError, QuestionCancelled
from engine.manifest import read_manifest
from engine.parallel import SHARDED
from engine.runtime.pipeline import Outcome, SglPipeline
from engine.runtime.question import Question
from engine.target import Device
from tools.triton.inquiry import Inquiry, Reader
from tools.triton.placement import take_gpus
from tools.triton.serve_config import ServeConfig
from tools.triton.tensors import ENGINE


class Unavailable(EngineError):
    """Nothing is wrong with the question; the same one may be answered later, or by another server."""


def engine_directory(args: Mapping[str, str]) -> Path:
    """What the parameter `engine` says; a relative path starts at the model's version directory."""
    return Path(args["model_repository"]) / args["model_version"] / _parameters(args)[ENGINE]


def open_reader(args: Mapping[str, str]) -> Reader:
    """args: as `initialize` receives them."""
    return Reader(ServeConfig.from_parameters(_parameters(args)), read_manifest(engine_directory(args)))


def open_pipeline(args: Mapping[str, str], role: str, reader: Reader) -> SglPipeline:
    """With one of its models loaded, on the GPUs of this instance. Raises EngineError."""
    take_gpus(args, _parameters(args), reader.manifest.world_size if role == SHARDED else 1)
    device = Device.CUDA if args["model_instance_kind"] == "GPU" else None
    serve = reader.serve
    return SglPipeline.load(
        engine_directory(args), serve.threads, models=(role,), device=device, feature_cache=serve.feature_cache
    )


def _parameters(args: Mapping[str, str]) -> dict[str, str]:
    entries: dict[str, dict[str, str]] = json.loads(args["model_config"])["parameters"]
    return {key: entry["string_value"] for key, entry in entries.items()}


def warm_up_question(sampling: SamplingConfig) -> Question:
    return Question((Image.new("RGB", (64, 64)),), "What is this?", sampling=sampling)


def try_read(reader: Reader, request: Any) -> Inquiry | EngineError:
    try:
        return read(reader, request)
    except EngineError as error:
        return error
    except Exception as error:  # whatever a stranger sent, the server keeps serving
        return EngineError(f"the request cannot be read ({error}); compare it with the model's metadata")


def read(reader: Reader, request: Any) -> Inquiry:
    """Raises EngineError."""
    return reader.read({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}, request.parameters())


def answer_together(run: Callable[[Sequence[int]], list[Outcome]], size: int) -> list[Outcome]:
    """Outcomes of questions 0..size-1; should the batch as a whole fail, each is tried alone."""
    try:
        return run(range(size))
    except Exception as error:  # whatever it is, the server keeps serving
        if size == 1:
            return [EngineError(f"the model failed ({error}); see the server's log")]
    return [answer_together(lambda _, index=index: run([index]), 1)[0] for index in range(size)]  # type: ignore[misc]


def response(outputs: Mapping[str, np.ndarray]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def error_response(error: Exception) -> Any:
    if isinstance(error, QuestionCancelled):
        code = pb_utils.TritonError.CANCELLED
    elif isinstance(error, Unavailable):
        code = pb_utils.TritonError.UNAVAILABLE
    elif isinstance(error, EngineError):
        code = pb_utils.TritonError.INVALID_ARG
    else:
        code = pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def send_last(sender: Any, last: Any) -> None:
    sender.send(last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
