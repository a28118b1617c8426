"""What this server's Python backend wants, and what it must not be given.

The backend frees Python objects without the interpreter's lock (up to 2.51 at least): those of a response that a client
did not ask for, while it is sent. So everything that `send` may drop is held until `send` has returned. A sender is
touched by one thread, and not at all once its last response has gone: the server then has freed what it points to.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.engine_directory import read_manifest
from engine.errors import EngineError, ImageError, ModelFailed, QuestionCancelled, RequestError
from engine.runtime.loading import gpus_of
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.inquiry import Reader
from engine.serve.triton.placement import take_gpus
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import ENGINE, input_name
from engine.target import Device

LOG = logging.getLogger(__name__)


def engine_directory(args: Mapping[str, str]) -> Path:
    """What the parameter `engine` says; a relative path starts at the model's version directory."""
    return Path(args["model_repository"]) / args["model_version"] / _parameters(args)[ENGINE]


def open_reader(args: Mapping[str, str]) -> Reader:
    """args: as `initialize` receives them."""
    return Reader(ServeConfig.from_parameters(_parameters(args)), read_manifest(engine_directory(args)))


def open_pipeline(args: Mapping[str, str], reader: Reader) -> SglPipeline:
    """On the GPUs of this instance. Raises EngineError."""
    serve, device = reader.serve, Device.CUDA if args["model_instance_kind"] == "GPU" else None
    take_gpus(args, _parameters(args), gpus_of(reader.manifest, serve.small_apart))
    return SglPipeline.load(
        engine_directory(args),
        serve.threads,
        device=device,
        **vars(serve.serving()),
    )


def _parameters(args: Mapping[str, str]) -> dict[str, str]:
    entries: dict[str, dict[str, str]] = json.loads(args["model_config"])["parameters"]
    return {key: entry["string_value"] for key, entry in entries.items()}


def read_inputs(request: Any) -> dict[str, np.ndarray]:
    """Copies: the server takes their memory back when `execute` returns."""
    return {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}


def send(sender: Any, outputs: Mapping[str, np.ndarray], is_last: bool = False) -> None:
    """Raises what the backend raises."""
    response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
    held = response.output_tensors()
    sender.send(response, flags=_flags(is_last))
    del held


def send_error(sender: Any, error: Exception) -> None:
    """As the last response. Raises what the backend raises."""
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message(error), code(error)))
    sender.send(response, flags=_flags(True))


def send_end(sender: Any) -> None:
    """A last response without anything in it."""
    sender.send(flags=_flags(True))


def _flags(is_last: bool) -> int:
    return int(pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL) if is_last else 0


def message(error: Exception) -> str:
    if isinstance(error, EngineError):
        return error.worded(input_name)
    return f"the server failed ({error!r}); see its log"


def code(error: Exception) -> Any:
    """INVALID_ARG: the asker's mistake. UNAVAILABLE: the same question may be answered later, or elsewhere."""
    if isinstance(error, RequestError | ImageError):
        return pb_utils.TritonError.INVALID_ARG
    if isinstance(error, QuestionCancelled):
        return pb_utils.TritonError.CANCELLED
    if isinstance(error, EngineError) and not isinstance(error, ModelFailed):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INTERNAL
