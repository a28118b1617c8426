"""Many clients of `sgl serve` at once: some read to the end, some leave, some send slowly, some send nothing sensible.

Every answer has to be the one that the same question gets alone, every other client has to be told what is wrong or be
let go, and the server has to be idle at the end with the memory that it had.
"""

import asyncio
import base64
import io
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.cli.command_line import CommandParser, positive, run_command
from engine.errors import EngineError
from tools.scenes import make_scene

SECONDS = 600.0
SIZES = ((330, 220), (100, 300), (64, 64), (448, 448))
TEXTS = ("What is it?", "How many are there?", "Which colour is the largest?", "Where is the number 5?")


class Client(StrEnum):
    """What one does."""

    READS = "reads to the end"
    LEAVES = "leaves after a piece"
    SLOW = "sends slowly"
    SILENT = "sends nothing"
    BROKEN = "sends what is no request"


SHARES = {Client.READS: 0.7, Client.LEAVES: 0.1, Client.SLOW: 0.1, Client.SILENT: 0.05, Client.BROKEN: 0.05}


@dataclass(frozen=True)
class Asked:
    """A request, and the text that it gets alone."""

    body: bytes
    expected: str


@dataclass(frozen=True)
class Storm:
    """url: of the server. model: what it calls its model."""

    url: str
    model: str
    max_tokens: int = 8

    def questions(self) -> list[bytes]:
        """Requests about pictures of mixed sizes, with mixed settings."""
        bodies = []
        for seed, size in enumerate(SIZES):
            for number, text in enumerate(TEXTS):
                file = io.BytesIO()
                make_scene(seed=seed, width=size[0], height=size[1], objects=4)[0].save(file, "png")
                url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
                content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
                settings: dict[str, Any] = {"no_early_exit": True} if number % 2 else {"exit_threshold": -1.0}
                body = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": True}
                bodies.append(json.dumps(body | {"max_tokens": self.max_tokens, "sgl": settings}).encode())
        return bodies

    async def run(self, count: int, seed: int) -> Counter[str]:
        """So many clients, all at once -> what became of them. Raises EngineError for a wrong answer."""
        asked = [Asked(body, await self._answer(body)) for body in self.questions()]
        order = random.Random(seed)
        kinds = order.choices(list(SHARES), list(SHARES.values()), k=count)
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(self._client(kind, order.choice(asked)) for kind in kinds)), SECONDS
        )
        return Counter(outcomes)

    async def _client(self, kind: Client, asked: Asked) -> str:
        if kind is Client.READS:
            text = await self._answer(asked.body)
            if text != asked.expected:
                raise EngineError(f"an answer was {text!r} and is {asked.expected!r} alone")
        elif kind is Client.LEAVES:
            reader, writer = await self._send(_request(asked.body))
            await reader.readuntil(b"data: ")
            writer.transport.abort()
        elif kind is Client.SLOW:
            request = _request(asked.body)
            step = max(1, len(request) // 20)
            reader, writer = await self._send(b"")
            for start in range(0, len(request), step):
                writer.write(request[start : start + step])
                await asyncio.sleep(0.05)
            text = _text(await reader.read())
            writer.close()
            if text != asked.expected:
                raise EngineError(f"a slow client's answer was {text!r} and is {asked.expected!r} alone")
        elif kind is Client.SILENT:
            _, writer = await self._send(b"")
            await asyncio.sleep(1.0)
            writer.close()
        else:
            reader, writer = await self._send(_request(asked.body[: len(asked.body) // 2]))
            if not (said := await reader.read()).startswith(b"HTTP/1.1 400"):
                raise EngineError(f"half a request was answered with {said[:80]!r}")
            writer.close()
        return kind

    async def _answer(self, body: bytes) -> str:
        reader, writer = await self._send(_request(body))
        said = await reader.read()
        writer.close()
        return _text(said)

    async def _send(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24)
        writer.write(data)
        return reader, writer


def _request(body: bytes) -> bytes:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _text(said: bytes) -> str:
    """Of a whole stream. Raises EngineError where it is none."""
    head, _, body = said.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in body:
        raise EngineError(f"a question was answered with {said[:200]!r} … {said[-80:]!r}")
    text = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text.append(choice["delta"].get("content", ""))
    return "".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.http_storm", description=__doc__)
    add = parser.add_argument
    add("url", help="of a running server, such as http://127.0.0.1:8000; let it take as many questions as come")
    add("--model", required=True)
    add("--clients", type=positive, default=500, help="at once (default: %(default)s)")
    add("--times", type=positive, default=3, help="in a row (default: %(default)s)")
    add("--process", type=int, help="process id of the server, whose memory is looked at")
    arguments = parser.parse_args(argv)

    def command() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for number in range(arguments.times):
            start = time.monotonic()
            outcomes = asyncio.run(Storm(arguments.url, arguments.model).run(arguments.clients, number))
            memory = "" if arguments.process is None else f", {resident_mb(arguments.process):.0f} MB resident"
            said = ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))
            print(f"storm {number + 1}: {said}; {time.monotonic() - start:.1f} s{memory}", flush=True)

    return run_command(command)


def resident_mb(process: int) -> float:
    """Memory that is the process's own, without files that it maps."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    sys.exit(main())
