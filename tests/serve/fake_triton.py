"""The part of Triton's Python backend that the served model uses, for tests of it without a server."""

from types import SimpleNamespace
from typing import Any

import numpy as np

FINAL = 1


class TritonError:
    INVALID_ARG, CANCELLED, UNAVAILABLE, INTERNAL = "INVALID_ARG", "CANCELLED", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self.error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self.tensors


class Metric:
    def __init__(self, labels: dict[str, str], buckets: list[float] | None = None) -> None:
        self.labels, self.value = labels, 0.0
        self.observed: list[float] = []

    def increment(self, amount: float) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    made: dict[str, list[Metric]]
    """Name -> metrics of the test that runs."""

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._name = name

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        metric = Metric(labels, buckets)
        self.made.setdefault(self._name, []).append(metric)
        return metric


class Sender:
    """Of one request. failing: how many calls of `send` fail, from the first on."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.is_gone = False
        self.responses: list[InferenceResponse | None] = []
        self.finals = 0

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.finals, "nothing is sent after the last response"
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the server does not take it")
        self.responses.append(response)
        self.finals += flags == FINAL

    def is_cancelled(self) -> bool:
        assert not self.finals, "the server has freed what this looks at"
        return self.is_gone

    def error(self) -> TritonError | None:
        return next((response.error for response in self.responses if response is not None and response.error), None)

    def outputs(self, name: str) -> list[Any]:
        tensors = [tensor for response in self.responses if response is not None for tensor in response.tensors]
        return [tensor.as_numpy()[0, 0] for tensor in tensors if tensor.name() == name]


class Request:
    def __init__(self, sender: Sender, inputs: dict[str, np.ndarray], parameters: str = "") -> None:
        self._sender, self._inputs, self._parameters = sender, inputs, parameters

    def get_response_sender(self) -> Sender:
        return self._sender

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._inputs.items()]

    def parameters(self) -> str:
        return self._parameters


def make_module() -> SimpleNamespace:
    """`triton_python_backend_utils`."""
    MetricFamily.made = {}
    return SimpleNamespace(
        TritonError=TritonError,
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        MetricFamily=MetricFamily,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
