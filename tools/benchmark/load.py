"""Many questions to a served model, some at a time: how many are answered a second, and how long each takes."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tools.benchmark.worker import WorkerError

SECONDS = 300.0
"""Until a question counts as lost."""


@dataclass(frozen=True)
class Load:
    """latencies: seconds of each question. seconds: from the first question to the last answer."""

    latencies: tuple[float, ...]
    seconds: float

    def throughput(self) -> float:
        """Questions per second."""
        return len(self.latencies) / self.seconds


def measure_load(url: str, model: str, questions: Sequence[Mapping[str, Any]], concurrency: int) -> Load:
    """Ask over HTTP, `concurrency` at a time. Raises WorkerError for a question that is not answered."""

    def ask(question: Mapping[str, Any]) -> float:
        start = time.perf_counter()
        _generate(url, model, question)
        return time.perf_counter() - start

    with ThreadPoolExecutor(concurrency) as pool:
        start = time.perf_counter()
        latencies = tuple(pool.map(ask, questions))
        return Load(latencies, time.perf_counter() - start)


def _generate(url: str, model: str, question: Mapping[str, Any]) -> None:
    request = urllib.request.Request(f"{url}/v2/models/{model}/generate", json.dumps(question).encode())
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            response.read()
    except urllib.error.HTTPError as error:
        raise WorkerError(f"{model} answers with an error: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise WorkerError(f"{model} does not answer ({error})") from None
