"""The model `sgl`: the cascade. It asks `small_vlm`, and unless that is sure, `large_vlm` with the importance."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.errors import EngineError, QuestionCancelled, RequestError
from tools.triton import backend
from tools.triton.cancellation import Watcher
from tools.triton.inquiry import CANCEL_TOKEN, Inquiry, Tensors
from tools.triton.metrics import CascadeMetrics
from tools.triton.reply import text
from tools.triton.tensors import ANSWER, DECISION, ERROR, IMPORTANCE, LARGE, SMALL

DECIDED = {tensor.name for tensor in DECISION}


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        self._reader = backend.open_reader(args)
        self._metrics = CascadeMetrics()
        self._watcher = Watcher()
        self._max_in_flight = self._reader.serve.max_in_flight
        self._pool = ThreadPoolExecutor(self._max_in_flight)
        self._places = Semaphore(self._max_in_flight)

    def execute(self, requests: Sequence[Any]) -> None:
        """Each question runs in a thread of its own, so that the models below see them together and batch them."""
        for request in requests:
            self._metrics.arrived()
            if not self._places.acquire(blocking=False):
                self._metrics.failed()
                self._metrics.left()
                full = f"questions in flight are as many as max_in_flight, {self._max_in_flight}; ask again later"
                backend.send_last(request.get_response_sender(), backend.error_response(backend.Unavailable(full)))
                continue
            # Copied: the inputs lie in memory that the server takes back when `execute` returns.
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self._pool.submit(self._serve, tensors, request.parameters(), request.get_response_sender())

    def finalize(self) -> None:
        self._pool.shutdown()

    def _serve(self, tensors: Tensors, parameters: str, sender: Any) -> None:
        """Whatever happens, the client gets a last response."""
        token, end_watch = self._watcher.watch(sender.is_cancelled)
        try:
            last = self._answer(self._reader.read(tensors, parameters), token, sender)
        except Exception as error:
            self._metrics.failed()
            last = backend.error_response(error)
        finally:
            end_watch()
            self._places.release()
            self._metrics.left()
        backend.send_last(sender, last)

    def _answer(self, inquiry: Inquiry, token: str, sender: Any) -> Any:
        """The last response; the others are sent. Raises EngineError."""
        said: dict[str, np.ndarray] = {}
        if inquiry.exit.enabled or inquiry.wants_importance():
            said = _read(_request(SMALL.name, inquiry.small_inputs(), token, SMALL.outputs).exec())
        decision = {name: said[name] for name in DECIDED & said.keys()}
        if inquiry.return_importance and IMPORTANCE.name in said:
            decision[IMPORTANCE.name] = said[IMPORTANCE.name]
        if said and said["early_exit"][0, 0]:
            self._metrics.exited()
            answer = {tensor.name: said[tensor.name] for tensor in ANSWER if tensor.name in said}
            if inquiry.stream:
                sender.send(backend.response({"text_output": answer["text_output"]}))
                answer["text_output"] = text("")
            return backend.response(answer | decision)
        importance = said[IMPORTANCE.name][0] if inquiry.wants_importance() else None
        answer = _stream(_request(LARGE.name, inquiry.large_inputs(importance), token, LARGE.outputs), sender)
        return backend.response(answer | decision)


def _request(model: str, inputs: Mapping[str, np.ndarray], token: str, outputs: Sequence[Any]) -> Any:
    return pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[tensor.name for tensor in outputs],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        parameters={CANCEL_TOKEN: token},
    )


def _stream(request: Any, sender: Any) -> dict[str, np.ndarray]:
    """Pass on every piece; the last response of the callee. Raises EngineError."""
    last: dict[str, np.ndarray] = {}
    failure: EngineError | None = None
    # Read to the end even after an error: a response that nobody takes would hold up the server's shutdown.
    for part in request.exec(decoupled=True):
        if failure is not None:
            continue
        try:
            outputs = _read(part)
        except EngineError as error:
            failure = error
            continue
        if ERROR.name in outputs:
            failure = backend.Unavailable(outputs[ERROR.name][0, 0].decode())
        elif "finish_reason" in outputs:
            last = outputs
        elif outputs:
            sender.send(backend.response(outputs))
    if failure is not None:
        raise failure
    return last


def _read(response: Any) -> dict[str, np.ndarray]:
    """The output tensors. Raises the callee's error, or Unavailable where it could not be asked."""
    if not response.has_error():
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    error = response.error()
    if error.code() == pb_utils.TritonError.INVALID_ARG:
        raise RequestError(error.message())
    if error.code() == pb_utils.TritonError.CANCELLED:
        raise QuestionCancelled(error.message())
    raise backend.Unavailable(f"a model could not be asked ({error.message()}); ask again, or another server")
