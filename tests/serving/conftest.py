"""A random pair behind the real server, on loopback; the pipeline in this process is the oracle."""

import base64
import io
import json
import queue
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput

from engine.build.builder import build_pair
from engine.cli.export import write_repository
from engine.config import BuildConfig
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import INPUTS, MODEL
from tools.make_random_pair import write_pair
from tools.scenes import make_scene
from tools.triton import server_process
from tools.triton.server_environment import UnsuitableMachine
from tools.triton.server_process import ServerProcess

KINDS = {tensor.name: tensor.kind for tensor in INPUTS}
TYPES = {"STRING": ("BYTES", object), "BOOL": ("BOOL", bool), "FP32": ("FP32", np.float32)}
TYPES |= {kind: (kind, getattr(np, kind.lower())) for kind in ("UINT8", "INT32", "INT64", "UINT64")}
SECONDS = 120.0


class Server(ServerProcess):
    """A running server with clients."""

    def post(self, path: str, content: dict[str, Any]) -> bytes:
        """Over HTTP; raises urllib's HTTPError."""
        request = urllib.request.Request(f"{self.url}/v2/{path}", json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return bytes(response.read())

    def generate(self, **inputs: Any) -> dict[str, Any]:
        """Whole answer over HTTP; an error is `{"error": ...}`."""
        try:
            return dict(json.loads(self.post(f"models/{MODEL}/generate", inputs)))
        except urllib.error.HTTPError as error:
            return dict(json.loads(error.read()))

    def await_metric(self, name: str, value: float, **labels: str) -> None:
        """Counts are handed over when there is nothing else to do, at latest twice a second."""
        deadline = time.monotonic() + SECONDS
        while (now := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {now} and not {value}"
            time.sleep(0.05)

    def stream(self, **inputs: Any) -> list[dict[str, Any]]:
        """Every response over gRPC; an error is the last one, `{"error": ...}`."""
        with self.grpc() as (client, results):
            client.async_stream_infer(MODEL, grpc_inputs(inputs), enable_empty_final_response=True)
            return read_stream(results)

    @contextmanager
    def grpc(self, cancel: bool = False) -> Iterator[tuple[Any, "queue.Queue[Any]"]]:
        """A client with an open stream, and where its results arrive. cancel: at the end, what is not answered."""
        results: queue.Queue[Any] = queue.Queue()
        client = InferenceServerClient(f"127.0.0.1:{self.ports['grpc']}")
        client.start_stream(lambda result, error: results.put((result, error)))
        try:
            yield client, results
        finally:
            client.stop_stream(cancel_requests=cancel)
            client.close()


def grpc_inputs(inputs: Mapping[str, Any]) -> list[Any]:
    """Values as tensors with a batch dimension."""
    tensors = []
    for name, value in inputs.items():
        kind, dtype = TYPES[KINDS[name]]
        array = np.atleast_1d(np.array(value, dtype))[None]
        tensors.append(InferInput(name, list(array.shape), kind))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def read_stream(results: "queue.Queue[Any]") -> list[dict[str, Any]]:
    """The responses to one request."""
    responses: list[dict[str, Any]] = []
    while True:
        result, error = results.get(timeout=SECONDS)
        if error is not None:
            return [*responses, {"error": error.message()}]
        content = result.get_response()
        outputs = {output.name: result.as_numpy(output.name)[0] for output in content.outputs}
        if outputs:
            responses.append({name: value[0] if len(value) == 1 else value for name, value in outputs.items()})
        if content.parameters["triton_final_response"].bool_param:
            return responses


def joined(responses: list[dict[str, Any]]) -> str:
    return b"".join(response["text_output"] for response in responses).decode()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@contextmanager
def serve(repository: Path, directory: Path, *options: str, **variables: str) -> Iterator[Server]:
    """Start the server and wait until it is ready; a machine that cannot run it skips the test."""
    try:
        with server_process.serve(repository, directory, options, variables) as process:
            yield Server(process.process, process.ports, process.log)
    except UnsuitableMachine as error:
        pytest.skip(str(error))


@contextmanager
def watched(repository: Path, directory: Path, *options: str) -> Iterator[Server]:
    """Like `serve`; the process is `sgl watch`, which starts the server. options: of `sgl watch`."""
    try:
        start = server_process.prepare(repository, directory)
    except UnsuitableMachine as error:
        pytest.skip(str(error))
    urls = [f"--url=http://127.0.0.1:{start.ports['http']}", f"--metrics-url=http://127.0.0.1:{start.ports['metrics']}"]
    command = [sys.executable, "-m", "engine.cli", "watch", *urls, *options, "--", *start.command]
    # The server's libraries are not for this interpreter.
    shell = ["env", *(f"{name}={start.variables[name]}" for name in ("PATH", "LD_LIBRARY_PATH"))]
    command[-len(start.command) :] = [*shell, *start.command]
    log = directory / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    server = Server(process, start.ports, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """World size -> engine directory of the same random pair."""
    pair = tmp_path_factory.mktemp("pair")
    write_pair(pair, seed=3)

    def build(world_size: int) -> Path:
        out = tmp_path_factory.mktemp("engines") / "pair"
        build_pair(
            BuildConfig(pair / "small", pair / "large", out, max_tokens=1024, max_batch=4, world_size=world_size)
        )
        return out

    return build


@pytest.fixture(scope="session")
def engine_directory(build: Callable[[int], Path]) -> Path:
    return build(1)


@pytest.fixture(scope="session")
def pipeline(engine_directory: Path) -> Iterator[SglPipeline]:
    with SglPipeline.load(engine_directory, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def server(engine_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its repository was moved after the export."""
    directory = tmp_path_factory.mktemp("server")
    config = ServeConfig(threads=1, options={"max_new_tokens": 6}, allow_image_urls=True)
    write_repository(engine_directory, directory / "exported", config)
    (directory / "exported").rename(directory / "repository")
    with serve(directory / "repository", directory) as running:
        yield running


@pytest.fixture(scope="session")
def picture() -> bytes:
    """PNG."""
    return encode(make_scene(seed=1, width=330, height=220, objects=5)[0])
