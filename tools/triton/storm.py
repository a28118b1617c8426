"""Put a Triton Inference Server under a storm of questions, and see that none is lost, mixed up or hung.

Pictures of mixed sizes over HTTP and gRPC, whole and in pieces; some are cancelled, some malformed; busy loops hold the
cores. Every answer is compared with the one that the pipeline gives alone.
"""

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import os
import queue
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.build.builder import build_pair
from engine.cli.command_line import CommandParser, positive, run_command
from engine.cli.export import write_repository
from engine.cli.watch import shared_memory, stubs
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.errors import EngineError
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.control import await_idle
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import MODEL
from tools.make_random_pair import write_pair
from tools.scenes import make_scene
from tools.triton.server_process import ServerProcess, serve

SIZES = ((40, 30), (112, 112), (200, 150), (150, 400), (400, 300))
TEXTS = ("What colour is the large circle?", "How many shapes are there?", "What is on the left? " * 6)
TOKENS = (1, 4, 12)
FIRST = 100
"""Questions after which memory is measured first; as many as are asked at once, if these are more: the server keeps the
state of its connections, for as many as it ever had at once."""
CANCELLED, MALFORMED = 0.1, 0.05
"""Shares of the questions."""
ANSWER_SECONDS = 600.0
"""After which a question counts as hung."""


class Door(StrEnum):
    GENERATE = "generate"
    GENERATE_STREAM = "generate_stream"
    GRPC = "gRPC"
    GRPC_TEXT = "gRPC, text only"
    """The backend drops the outputs that nobody asked for."""


class Fate(StrEnum):
    """What became of a question."""

    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    HUNG = "hung"


class StormError(EngineError):
    """Questions that were lost, mixed up or hung, or memory that is not given back."""


@dataclass(frozen=True)
class Case:
    """What is asked, as inputs of the server, and the answer."""

    picture: bytes
    inputs: dict[str, Any]
    answer: str


@dataclass(frozen=True)
class Shot:
    """One question of the storm."""

    case: Case
    door: Door
    is_cancelled: bool
    is_malformed: bool


@dataclass(frozen=True)
class Report:
    """memory: bytes after the first questions of the server, and at the end."""

    fates: Counter[Fate]
    expected: Counter[Fate]
    memory: tuple[int, int]
    seconds: float

    def growth(self) -> float:
        return self.memory[1] / self.memory[0] - 1

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {fate}" for fate, count in sorted(self.fates.items()))
        before, after = (value / 2**20 for value in self.memory)
        return f"{counts} in {self.seconds:.0f} s; memory {before:.0f} MiB, then {after:.0f} ({self.growth():+.1%})"


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.triton.storm", description=__doc__)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--questions", type=positive, default=1000, help=default)
    add("--parallel", type=positive, default=100, help=f"questions at once {default}")
    add("--busy", type=int, default=len(os.sched_getaffinity(0)), help=f"busy loops {default}")
    add("--times", type=positive, default=1, help=f"storms, one after the other on one server {default}")
    add("--seed", type=int, default=0, help=default)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Raises StormError."""
    with tempfile.TemporaryDirectory(prefix="storm-") as directory:
        engine = make_engine(Path(directory))
        with SglPipeline.load(engine, threads=1) as pipeline:
            cases = list(make_cases(pipeline))
        storms = [draw(cases, arguments.questions, arguments.seed + turn) for turn in range(arguments.times)]
        for turn, report in enumerate(storm(engine, Path(directory), storms, arguments.parallel, arguments.busy)):
            print(f"storm {turn + 1} of {arguments.times}: {report}", flush=True)
            check(report)
    print(f"{arguments.times} storms of {arguments.questions} questions: none was lost, mixed up or hung")


def check(report: Report) -> None:
    """Raises StormError."""
    if report.fates[Fate.WRONG] or report.fates[Fate.HUNG] or report.fates[Fate.FAILED]:
        raise StormError(f"questions went wrong: {report}")
    if report.fates[Fate.REFUSED] != report.expected[Fate.REFUSED]:
        raise StormError(f"{report.expected[Fate.REFUSED]} questions were malformed: {report}")
    if report.fates.total() != report.expected.total():
        raise StormError(f"of {report.expected.total()} questions, {report.fates.total()} came back: {report}")
    if report.growth() > 0.05:
        raise StormError(f"memory was not given back: {report}")


def make_engine(directory: Path) -> Path:
    """Of a pair with random weights."""
    write_pair(directory / "pair", seed=3)
    build_pair(
        BuildConfig(directory / "pair" / "small", directory / "pair" / "large", directory / "engine", max_tokens=1024)
    )
    return directory / "engine"


def make_cases(pipeline: SglPipeline) -> Iterator[Case]:
    """All combinations of pictures, texts and settings, each asked alone."""
    for index, (width, height) in enumerate(SIZES):
        file = io.BytesIO()
        make_scene(seed=index, width=width, height=height, objects=3)[0].save(file, "png")
        for turn, text in enumerate(TEXTS):
            tokens, threshold, ratio = TOKENS[(index + turn) % 3], (0.0, 1.1)[turn % 2], (0.1, 0.3)[index % 2]
            answer = pipeline.answer(
                file.getvalue(),
                text,
                guidance=GuidanceConfig(retention_ratio=ratio),
                exit=ExitConfig(exit_threshold=threshold),
                sampling=SamplingConfig(max_new_tokens=tokens),
            )
            inputs = {"text_input": text, "max_tokens": tokens, "exit_threshold": threshold, "retention_ratio": ratio}
            yield Case(file.getvalue(), inputs, answer.text)


def draw(cases: Sequence[Case], count: int, seed: int) -> list[Shot]:
    order = random.Random(seed)
    shots = []
    for _ in range(count):
        luck = order.random()
        is_cancelled, is_malformed = luck < CANCELLED, CANCELLED <= luck < CANCELLED + MALFORMED
        shots.append(Shot(order.choice(cases), order.choice([*Door]), is_cancelled, is_malformed))
    return shots


def storm(engine: Path, place: Path, storms: Sequence[Sequence[Shot]], parallel: int, busy: int) -> Iterator[Report]:
    """A report of each, in turn, all on one server. place: directory of the server. Raises EngineError."""
    config = ServeConfig(threads=1, max_waiting=max(map(len, storms)))
    write_repository(engine, place / "repository", config, link=True)
    first = max(FIRST, parallel)
    before = None
    with serve(place / "repository", place, ("--exit-timeout-secs=5",)) as server, busy_loops(busy):
        for shots in storms:
            start = time.monotonic()
            with ThreadPoolExecutor(parallel) as pool:
                fates = Counter(pool.map(partial(shoot, server), shots[:first]))
                before = before or memory(server)
                fates.update(pool.map(partial(shoot, server), shots[first:]))
            expected = Counter(Fate.REFUSED if shot.is_malformed else Fate.RIGHT for shot in shots)
            yield Report(fates, expected, (before, memory(server)), time.monotonic() - start)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that want a core each."""
    processes = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def spin() -> None:
    while True:
        pass


def memory(server: ServerProcess) -> int:
    """Bytes of the server and its model's process once no question is in flight; what they share counts once."""
    if questions := await_idle(server.control, time.monotonic() + ANSWER_SECONDS, 60.0):
        raise StormError(f"{questions:g} questions are still in flight after {ANSWER_SECONDS:g} s")
    total = sum(file.stat().st_blocks * 512 for file in shared_memory(server.process.pid))
    for process in (server.process.pid, *stubs(server.process.pid)):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        # Pages of files come and go with the machine's other processes, and what is swapped out is not given back.
        total += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith(("Pss_Anon:", "SwapPss:")))
    return total


def shoot(server: ServerProcess, shot: Shot) -> Fate:
    picture = shot.case.picture[: len(shot.case.picture) // 2] if shot.is_malformed else shot.case.picture
    ask = ask_grpc if shot.door in (Door.GRPC, Door.GRPC_TEXT) else ask_http
    try:
        answer = ask(server, shot, picture)
    except (TimeoutError, queue.Empty):
        return Fate.HUNG
    except Refusal as error:
        if shot.is_malformed and "the picture" in str(error):
            return Fate.REFUSED
        print(f"{shot.door}: {error}", file=sys.stderr)
        return Fate.FAILED
    except (OSError, http.client.HTTPException) as error:
        print(f"{shot.door}: {error!r}", file=sys.stderr)
        return Fate.FAILED
    if answer is None:
        return Fate.CANCELLED
    return Fate.RIGHT if answer == shot.case.answer and not shot.is_malformed else Fate.WRONG


class Refusal(Exception):
    """An answer that is an error."""


def ask_http(server: ServerProcess, shot: Shot, picture: bytes) -> str | None:
    """The text; None if the question was cancelled. Raises Refusal and what http.client raises."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=ANSWER_SECONDS)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    is_stream = shot.door is Door.GENERATE_STREAM
    try:
        body = shot.case.inputs | {"image_url_input": [url], "stream": is_stream}
        connection.request("POST", f"/v2/models/{MODEL}/{shot.door}", json.dumps(body))
        if shot.is_cancelled:
            time.sleep(0.05 * shot.case.inputs["max_tokens"])
            return None
        content = connection.getresponse().read()
    finally:
        connection.close()
    lines = content.split(b"\n\n") if is_stream else [content]
    parts = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.strip()]
    for part in parts:
        if "error" in part:
            raise Refusal(part["error"])
    return "".join(part["text_output"] for part in parts)


def ask_grpc(server: ServerProcess, shot: Shot, picture: bytes) -> str | None:
    """Likewise, over a stream of its own."""
    from tritonclient.grpc import InferenceServerClient, InferRequestedOutput

    results: queue.Queue[Any] = queue.Queue()
    client = InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")
    client.start_stream(lambda result, error: results.put((result, error)))
    outputs = [InferRequestedOutput("text_output")] if shot.door is Door.GRPC_TEXT else None
    try:
        inputs = grpc_inputs(shot.case.inputs | {"image_bytes_input": picture, "stream": True})
        client.async_stream_infer(MODEL, inputs, outputs=outputs, enable_empty_final_response=True)
        text = []
        while True:
            result, error = results.get(timeout=ANSWER_SECONDS)
            if error is not None:
                raise Refusal(error.message())
            if result.as_numpy("text_output") is not None:
                text.append(result.as_numpy("text_output")[0, 0])
            if shot.is_cancelled:
                return None
            if result.get_response().parameters["triton_final_response"].bool_param:
                return b"".join(text).decode()
    finally:
        client.stop_stream(cancel_requests=shot.is_cancelled)
        client.close()


KINDS = {"text_input": object, "image_bytes_input": object, "max_tokens": np.int32, "stream": bool}


def grpc_inputs(inputs: dict[str, Any]) -> list[Any]:
    """As tensors of shape [1,1]."""
    from tritonclient.grpc import InferInput
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, value in inputs.items():
        array = np.array([[value]], KINDS.get(name, np.float32))
        tensors.append(InferInput(name, [1, 1], np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    return tensors


if __name__ == "__main__":
    sys.exit(main())
