"""Pictures by URL: what is fetched, and what is refused."""

import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from engine.errors import ImageError
from engine.runtime import public_address
from engine.runtime.image_url import fetch
from engine.runtime.public_address import is_public


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/picture?size=1":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"pixels")
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback under a name that counts as public; `http://host:port`."""
    monkeypatch.setattr(public_address, "is_public", lambda address: address == "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_data_urls_need_no_network() -> None:
    assert fetch(f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}", allow_http=False) == b"pixels"
    assert fetch("data:,a%20b", allow_http=False) == b"a b"


def test_a_public_address_is_fetched_also_by_a_redirection(host: str) -> None:
    assert fetch(f"{host}/picture?size=1", allow_http=True) == b"pixels"
    assert fetch(f"{host}/to/{host}/picture?size=1", allow_http=True) == b"pixels"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "answers with status 404"),
        ("/to//to//to//to//to/x", "redirects more than 3 times"),
        ("/to/http://10.0.0.1/x", "leads to the private address 10.0.0.1"),
        ("/to/file:///etc/passwd", "names no host"),
    ],
)
def test_what_cannot_be_fetched_says_why(host: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(host + path, allow_http=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1/x.png", "leads to the private address 127.0.0.1"),
        ("http://[::1]:8000/", "leads to the private address ::1"),
        ("http://169.254.169.254/latest", "leads to the private address 169.254.169.254"),
        ("ftp://example.org/x.png", "neither data:, http: nor https:"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,?", "is not base64"),
        ("http://", "names no host"),
    ],
)
def test_what_is_never_fetched(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fetch(url, allow_http=True)


def test_nothing_is_fetched_unless_it_is_allowed() -> None:
    with pytest.raises(ImageError, match="are not allowed here"):
        fetch("https://example.org/x.png", allow_http=False)


def test_a_name_is_looked_up_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up could name another address than the one that was checked."""
    looked_up = []
    look_up = socket.getaddrinfo

    def count(name: str, *args: object, **named: object) -> object:
        if name == "pictures.example":
            looked_up.append(name)
            name = "127.0.0.1"
        return look_up(name, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", count)
    port = host.rpartition(":")[2]
    assert fetch(f"http://pictures.example:{port}/picture?size=1", allow_http=True) == b"pixels"
    assert looked_up == ["pictures.example"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::ffff:192.168.0.1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("::7f00:1", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public
