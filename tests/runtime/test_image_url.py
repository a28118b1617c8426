"""Pictures by URL: what is fetched, what is refused, and that nothing takes longer than it may."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from engine.errors import ImageError
from engine.runtime import public_address
from engine.runtime.image_url import EVERY_HOST, NO_HOST, fetch

SECONDS = 0.4
"""For a fetch that never ends by itself."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    done: threading.Event
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        self.close_connection = True
        match self.path.split("?")[0].split("/")[1]:
            case "to":
                self.answer(302, {"Location": self.path.removeprefix("/to/")})
            case "picture" | "%C3%A9t%C3%A9%20%25.png":
                self.answer(200, {"Content-Length": "6"}, b"pixels")
            case "chunked":
                self.answer(200, {"Transfer-Encoding": "chunked"}, b"3\r\npix\r\n3\r\nels\r\n0\r\n\r\n")
            case "empty":
                self.answer(200, {"Content-Length": "0"})
            case "short":
                self.answer(200, {"Content-Length": "60"}, b"pixels")
            case "large":
                self.answer(200, {"Content-Length": "99000000"}, b"pixels")
            case "endless":
                self.answer(200, {})
                self.trickle(b"x" * 1_000_000, 0)
            case "drops":
                self.answer(200, {"Content-Length": "1000"})
                self.trickle(b"x")
            case "header":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self.trickle(b"X")
            case "continue":
                self.trickle(b"HTTP/1.1 100 Continue\r\n\r\n")
            case "nonsense":
                self.wfile.write(b"I am no web server\r\n\r\n")
            case "silent":
                self.done.wait()
            case _:
                self.answer(404, {})

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def trickle(self, piece: bytes, pause: float = 0.02) -> None:
        """As long as anybody listens."""
        while not self.done.wait(pause):
            try:
                self.wfile.write(piece)
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def seen() -> list[tuple[str, dict[str, str]]]:
    """What was asked of the server: path and headers."""
    return []


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[str, dict[str, str]]]) -> Iterator[str]:
    """A server on loopback under a name that counts as public; `http://host:port`."""
    monkeypatch.setattr(public_address, "is_public", lambda address: address.startswith("127.0.0."))
    handler = type("ThisHandler", (Handler,), {"done": threading.Event(), "seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        handler.done.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names that are looked up, and which were."""
    known: dict[str, list[str]] = {}
    look_up = socket.getaddrinfo

    def find(name: str, *args: Any, **named: Any) -> list[Any]:
        known.setdefault("looked up", []).append(name)
        return [info for address in known.get(name, [name]) for info in look_up(address, *args, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    return known


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,?", "is not base64"),
        ("data:image/png;base64,AAAAA", "is not base64"),
        ("data:image/png;base64,AA=AA", "is not base64"),
        ("data:;base64,é", "is not base64"),
        ("data:,\udc80", "cannot be fetched"),
        ("data:,%4", "begins no escape"),
        ("data:,%%41", "begins no escape"),
        ("data:," + "%41" * 20_000_000, "more than 42,667,666 characters"),
        ("data:;base64," + "A" * 43_000_000, "more than 42,667,666 characters"),
        ("data:" + "x" * 43_000_000, "more than 42,667,666 characters"),
        ("ftp://example.org/x.png", "neither data:, http: nor https:"),
        ("file:///etc/passwd", "neither data:, http: nor https:"),
        ("", "neither data:, http: nor https:"),
        ("http://", "names no host"),
        ("http:///x.png", "names no host"),
        ("https:x.png", "names no host"),
        ("http://[::1", "cannot be fetched"),
        ("http://example.org:99999/", "cannot be fetched"),
        ("http://example.org:x/", "cannot be fetched"),
        (f"http://{'a' * 300}.example/", "cannot be fetched"),
        (f"http://{'é' * 300}.example/", "cannot be looked up"),
        ("http://é..example/", "cannot be looked up"),
        ("http://a\0b/", "cannot be looked up"),
        ("https://a\x7fb/", "cannot be looked up"),
        (f"http://example.org/{'x' * 9000}", "more than 8,192 characters"),
    ],
)
def test_what_is_never_fetched(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as raised:
        fetch(url, hosts=EVERY_HOST)
    assert str(raised.value).startswith("image URL ")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_nothing_is_fetched_unless_it_is_allowed() -> None:
    with pytest.raises(ImageError, match="are not allowed here"):
        fetch("https://example.org/x.png", hosts=NO_HOST)


@pytest.mark.parametrize("path", ["/picture?size=1", "/chunked", "/to/{host}/picture?size=1", "/to//picture"])
def test_a_public_address_is_fetched_also_by_a_redirection(host: str, path: str) -> None:
    assert fetch(host + path.format(host=host), hosts=EVERY_HOST) == b"pixels"


def test_what_a_server_is_told(host: str, seen: list[tuple[str, dict[str, str]]]) -> None:
    address = host.removeprefix("http://")
    fetch(f"http://somebody:secret@{address}/picture?size=1#part", hosts=EVERY_HOST)
    ((path, headers),) = seen
    assert path == "/picture?size=1"
    assert headers["Host"] == address
    assert headers["User-Agent"].startswith("sgl-engine/")
    assert "Authorization" not in headers and "secret" not in str(headers)


@pytest.mark.parametrize("way", ["", "/to/"])
@pytest.mark.parametrize("path", ["/été %25.png", "/%C3%A9t%C3%A9%20%25.png"])
def test_paths_are_escaped_once(host: str, path: str, way: str, seen: list[tuple[str, dict[str, str]]]) -> None:
    assert fetch(host + way + path, hosts=EVERY_HOST) == b"pixels"
    assert seen[-1][0] == "/%C3%A9t%C3%A9%20%25.png"


def test_a_redirection_may_be_in_utf8(host: str, seen: list[tuple[str, dict[str, str]]]) -> None:
    """As servers send it, though HTTP's headers are Latin-1."""
    before = Handler.answer

    def answer(self: Any, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        raw = {name: "/été %25.png".encode().decode("latin-1") for name in headers if name == "Location"}
        before(self, status, headers | raw, content)

    Handler.answer = answer  # type: ignore[method-assign]
    try:
        assert fetch(f"{host}/to/there", hosts=EVERY_HOST) == b"pixels"
    finally:
        Handler.answer = before  # type: ignore[method-assign]
    assert seen[-1][0] == "/%C3%A9t%C3%A9%20%25.png"


def test_a_host_may_have_any_letters(
    host: str, names: dict[str, list[str]], seen: list[tuple[str, dict[str, str]]]
) -> None:
    names["xn--bcher-kva.example"] = ["127.0.0.1"]
    port = host.rpartition(":")[2]
    assert fetch(f"http://Bücher.example:{port}/picture", hosts=EVERY_HOST) == b"pixels"
    assert seen[-1][1]["Host"] == f"xn--bcher-kva.example:{port}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "answers with status 404"),
        ("/to//to//to//to//to/x", "redirects more than 3 times"),
        ("/to/", "redirects more than 3 times"),
        ("/to/http://10.0.0.1/x", r"leads to the private address 10\.0\.0\.1"),
        ("/to/http://[::ffff:10.0.0.1]/x", "leads to the private address ::ffff:10.0.0.1"),
        ("/to/file:///etc/passwd", "names no host"),
        ("/to/data:,x", "names no host"),
        ("/short", "ends before all of it has come"),
        ("/large", "has more than 32,000,000 bytes"),
        ("/endless", "has more than 32,000,000 bytes"),
        ("/nonsense", "cannot be fetched"),
    ],
)
def test_what_cannot_be_fetched_says_why(host: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(host + path, hosts=EVERY_HOST, seconds=60)


def test_nothing_is_a_picture_too(host: str) -> None:
    assert fetch(f"{host}/empty", hosts=EVERY_HOST) == b""


@pytest.mark.parametrize("path", ["/drops", "/header", "/continue", "/silent", "/to//to//silent"])
def test_one_deadline_for_everything(host: str, path: str) -> None:
    with pytest.raises(ImageError, match=r"cannot be fetched within 0\.4 seconds"):
        fetch(host + path, hosts=EVERY_HOST, seconds=SECONDS)


def test_a_server_that_does_not_shake_hands_is_given_up(host: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ImageError, match=r"cannot be fetched within 0\.4 seconds"):
            fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/", hosts=EVERY_HOST, seconds=SECONDS)


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: ends.wait())
    monkeypatch.setattr(public_address, "LOOK_UPS", threading.BoundedSemaphore(2))
    for _ in range(4):
        with pytest.raises(ImageError, match=r"cannot be fetched within 0\.1 seconds"):
            fetch("http://example.org/", hosts=EVERY_HOST, seconds=0.1)
    ends.set()


def test_every_address_is_tried(host: str, names: dict[str, list[str]]) -> None:
    port = host.rpartition(":")[2]
    names["pictures.example"] = ["127.0.0.9", "127.0.0.8", "127.0.0.1"]
    assert fetch(f"http://pictures.example:{port}/picture", hosts=EVERY_HOST) == b"pixels"
    names["pictures.example"] = ["127.0.0.9", "127.0.0.8"]
    with pytest.raises(ImageError, match=r"cannot be fetched .*refused"):
        fetch(f"http://pictures.example:{port}/picture", hosts=EVERY_HOST)


def test_ipv4_is_tried_where_ipv6_fails(
    host: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_address, "is_public", lambda address: True)
    port = host.rpartition(":")[2]
    names["pictures.example"] = ["::1", "127.0.0.1"]
    assert fetch(f"http://pictures.example:{port}/picture", hosts=EVERY_HOST) == b"pixels"


def test_one_private_address_is_enough(host: str, names: dict[str, list[str]]) -> None:
    names["pictures.example"] = ["127.0.0.1", "10.0.0.1"]
    with pytest.raises(ImageError, match=r"leads to the private address 10\.0\.0\.1"):
        fetch(f"http://pictures.example:{host.rpartition(':')[2]}/picture", hosts=EVERY_HOST)


def test_a_name_is_looked_up_once(host: str, names: dict[str, list[str]]) -> None:
    """A second look-up could name another address than the one that was checked."""
    names["pictures.example"] = ["127.0.0.1"]
    port = host.rpartition(":")[2]
    assert fetch(f"http://pictures.example:{port}/picture?size=1", hosts=EVERY_HOST) == b"pixels"
    assert [name for name in names["looked up"] if name == "pictures.example"] == ["pictures.example"]


def test_only_hosts_that_are_named(host: str) -> None:
    """At every step of the way."""
    name = urlsplit(host).hostname
    assert name is not None
    assert fetch(f"{host}/to/{host}/picture?size=1", hosts=(name,)) == b"pixels"
    with pytest.raises(ImageError, match=f"leads to {name}, which pictures are not fetched from; use good.example"):
        fetch(f"{host}/picture?size=1", hosts=("good.example",))
    with pytest.raises(ImageError, match="leads to evil"):
        fetch(f"{host}/to/http://evil.example/picture", hosts=(name,))
