"""URLs of pictures, and what the server behind one answers."""

import base64
import ipaddress
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from engine.runtime.images import read_source
from engine.runtime.images.source import STDIN
from tools.fuzz.mutate import spoil_bytes

NAME = "urls"

SCHEMES = [*["data:"] * 4, *["http://"] * 8, "https://", "HTTP:", "DATA: ", "file://", "ftp://", "//", "~", ""]
HOSTS = [
    *["pictures.example"] * 5,
    *("private.example", "both.example", "none.example", "bücher.example", "a..example", "é" * 70, "a" * 300, ""),
    *("127.0.0.1", "0x7f.1", "2130706433", "10.0.0.1", "169.254.169.254", "93.184.215.14", "localhost", "\0"),
    *("[2606:2800:21f:cb07::1]", "[::ffff:127.0.0.1]", "[64:ff9b::a00:1]", "[::1]", "[fe80::1%25lo]", "[::"),
]
ADDRESSES = {
    "pictures.example": ["93.184.215.14", "2606:2800:21f:cb07::1"],
    "xn--bcher-kva.example": ["2606:2800:21f:cb07::1"],
    "private.example": ["10.0.0.1"],
    "both.example": ["93.184.215.14", "::1"],
}
PORTS = [*[""] * 9, ":80", ":0", ":65536", ":x", ":-1", ":"]
PATHS = ["", "/", "/a.png", "/é a.png?b=c#d", "/%", "/%C3%A9", "?q", "/\r\nHost: x", "/" + "x" * 9000, "/\ud800"]
KINDS = ["", "image/png", ";base64", "image/png;base64", "; base64", ";base64;charset=x", ";;;", "\0"]
CONTENTS = [
    "",
    "%41%zz",
    "%",
    "%4",
    "é",
    base64.b64encode(bytes(99)).decode(),
    "AAAA%3D",
    "A A\nA=",
    "=",
    "\ud800",
    "?",
]
ODD = ["", "\0", "\n", " ", "é", "%", "@", ":", "/", "\\", "[", "]", "#", "?", "．", "\ud800", "x" * 300]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npixels",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\npix\r\n3\r\nels\r\n0\r\n\r\n",
    b"HTTP/1.0 200\r\n\r\npixels",
    b"HTTP/1.1 302 Found\r\nLocation: /b.png\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nLocation: http://private.example/\r\n\r\n",
    b"HTTP/1.1 307 Moved\r\nLocation: //pictures.example:8080/\xc3\xa9\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\npixels",
    b"HTTP/1.1 404 Not Found\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"\x16\x03\x01\0\x02\x02\x28",
    b"",
]


def make(seed: int) -> Any:
    """A URL, and the answer of every server in Latin-1."""
    rng = random.Random(seed)
    scheme = rng.choice(SCHEMES)
    if scheme.lower().startswith("data"):
        text = scheme + rng.choice(KINDS) + rng.choice([",", ",", ",", ""]) + rng.choice(CONTENTS)
    else:
        user = rng.choice(["", "", "", "a:b@", "93.184.215.14@"])
        text = scheme + user + rng.choice(HOSTS) + rng.choice(PORTS) + rng.choice(PATHS)
    if rng.random() < 0.5:
        place = rng.randrange(len(text) + 1)
        odd = rng.choice(ODD)
        text = text[:place] + odd + text[place + rng.randrange(3) :]
    answer = rng.choice(ANSWERS)
    return {"url": text, "answer": (spoil_bytes(rng, answer) if rng.random() < 0.5 else answer).decode("latin-1")}


def run(case: Any) -> None:
    """What a command line does with it, in a network of our own."""
    text, answer = case.get("url", ""), case.get("answer", "").encode("latin-1")
    if text != STDIN:
        with network(answer):
            read_source(text, True)


@contextmanager
def network(answer: bytes) -> Iterator[None]:
    """In which names have known addresses, and whoever connects gets the answer at once."""
    numbers = socket.getaddrinfo

    def look_up(host: str, port: int, **options: Any) -> list[Any]:
        if host in ADDRESSES:
            return [info for address in ADDRESSES[host] for info in numbers(address, port, **options)]
        return numbers(host, port, flags=socket.AI_NUMERICHOST, **options)

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        assert ipaddress.ip_address(address[0]).is_global, f"connected to {address}"
        ours, theirs = socket.socketpair()
        servers.append(theirs)
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        return ours

    servers: list[socket.socket] = []
    with patch.object(socket, "getaddrinfo", look_up), patch.object(socket, "create_connection", connect):
        try:
            yield
        finally:
            for server in servers:
                server.close()
