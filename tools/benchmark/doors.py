"""The same question through different doors: in this process, over `sgl serve`, over a Triton Inference Server."""

import base64
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cli.export import write_repository
from engine.config import ExitConfig, SamplingConfig
from engine.errors import EngineError
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import MODEL
from tools.triton.server_process import serve

SECONDS = 600.0
START = "answers at http://"


@dataclass(frozen=True)
class Passage:
    """Seconds to the first piece of an answer, and to its end."""

    first: float
    last: float


Ask = Callable[[str], Passage]
"""A question about the picture that the door was made with; the large model answers, in pieces."""


def ask_at_once(ask: Ask, questions: list[str], at_once: int) -> tuple[list[Passage], float]:
    """What became of each, and the seconds of all."""
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        passages = list(pool.map(ask, questions))
    return passages, time.perf_counter() - start


@contextmanager
def in_process(engine: Path, picture: Path, tokens: int, threads: int) -> Iterator[Ask]:
    with SglPipeline.load(engine, threads) as pipeline:
        content = picture.read_bytes()

        def ask(question: str) -> Passage:
            start, first = time.perf_counter(), []
            pipeline.answer(
                [content],
                question,
                exit=ExitConfig(enabled=False),
                sampling=SamplingConfig(max_new_tokens=tokens),
                on_text=lambda piece: first.append(time.perf_counter()),
            )
            last = time.perf_counter()
            return Passage((first[0] if first else last) - start, last - start)

        yield ask


@contextmanager
def over_http(engine: Path, picture: Path, tokens: int, threads: int) -> Iterator[Ask]:
    """Raises EngineError."""
    command = [sys.executable, "-m", "engine.cli", "serve", str(engine), "--port", "0", "--model-name", MODEL]
    command += ["--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = next((line for line in process.stdout if START in line), "")
            if not said:
                raise EngineError(f"{' '.join(command)} did not start; run it by hand")
            address = said.partition(START)[2].partition(",")[0]
            part = {"type": "image_url", "image_url": {"url": _data_url(picture)}}
            yield _streaming(
                address,
                "/v1/chat/completions",
                lambda question: {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": [part, {"type": "text", "text": question}]}],
                    "max_tokens": tokens,
                    "stream": True,
                    "sgl": {"no_early_exit": True},
                },
                lambda event: any(choice["delta"].get("content") for choice in event["choices"]),
            )
        finally:
            process.kill()


@contextmanager
def over_triton(engine: Path, picture: Path, tokens: int, threads: int) -> Iterator[Ask]:
    """Raises ServerError, on a machine that cannot run it UnsuitableMachine."""
    with tempfile.TemporaryDirectory(prefix="doors") as directory:
        repository = Path(directory) / "repository"
        write_repository(engine, repository, ServeConfig(threads=threads), link=True)
        with serve(repository, Path(directory)) as server:
            url = _data_url(picture)
            yield _streaming(
                server.url.removeprefix("http://"),
                f"/v2/models/{MODEL}/generate_stream",
                lambda question: {
                    "text_input": question,
                    "image_url_input": [url],
                    "max_tokens": tokens,
                    "stream": True,
                    "no_early_exit": True,
                },
                lambda event: bool(event.get("text_output")),
            )


def _streaming(
    address: str, path: str, body: Callable[[str], dict[str, Any]], has_text: Callable[[dict[str, Any]], bool]
) -> Ask:
    """By server-sent events."""

    def ask(question: str) -> Passage:
        content = json.dumps(body(question)).encode()
        start, first = time.perf_counter(), None
        connection = http.client.HTTPConnection(address, timeout=SECONDS)
        try:
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise EngineError(f"{path} answers {response.status} ({response.read(200)!r}); see the server's log")
            for line in response:
                if first is None and line.startswith(b"data: {") and has_text(json.loads(line[6:])):
                    first = time.perf_counter()
        finally:
            connection.close()
        last = time.perf_counter()
        return Passage((first or last) - start, last - start)

    return ask


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
