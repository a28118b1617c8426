"""Pictures by URL: `data:` always; http and https only where allowed, and never from a private address."""

import base64
import binascii
import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import engine
from engine.errors import ImageError
from engine.runtime.public_address import Deadline, PrivateAddress, connect
from engine.runtime.words import short

MAX_BYTES = 32_000_000
"""Of a picture that comes by URL."""

MAX_DATA_URL = MAX_BYTES * 4 // 3 + 1000
"""Characters: as many as MAX_BYTES take in base64, and what stands before them."""

MAX_URL = 8192
"""Characters of any other."""

MAX_REDIRECTS = 3
Found = TypeVar("Found")
Hosts = Collection[str] | None
EVERY_HOST: Hosts = None
"""With a public address."""
NO_HOST: Hosts = ()
SECONDS = 10.0
"""For all of it: looking the host up, connecting, redirections, and the content."""

LEAST_SECONDS = 0.001
"""For a picture whose question has no time left: that ends it with what is wrong."""

PORTS = {"http": 80, "https": 443}
REDIRECTIONS = (301, 302, 303, 307, 308)
HEADERS = {"Accept": "image/*", "User-Agent": f"sgl-engine/{engine.__version__}"}
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
UNCHANGED = "%!#$&'()*+,/:;=?@[]~"
"""What stands for itself in a URL; everything else is escaped."""


class _Refused(Exception):
    """Why a URL is, as the sentence that its name begins."""


def find_all(places: Sequence[str], find: Callable[[str, float], Found], timeout: float | None) -> list[Found]:
    """What `find` gives for each place within the seconds that it is told: all of them together have the time of one,
    and no more than `timeout`, what is left of their question's. Raises what it raises."""
    end = time.monotonic() + (SECONDS if timeout is None else min(SECONDS, timeout))
    return [find(place, max(end - time.monotonic(), LEAST_SECONDS)) for place in places]


def fetch(url: str, hosts: Hosts, seconds: float = SECONDS) -> bytes:
    """The bytes behind a URL; http(s) ones within so many seconds in all, from these hosts.
    Raises ImageError."""
    url = url.strip()
    name = f"image URL {short(url, 80)}"
    scheme = url.partition(":")[0].lower()
    try:
        if scheme == "data":
            return _data(url)
        if scheme not in PORTS:
            raise _Refused("is neither data:, http: nor https:; send the picture itself")
        if hosts is not None and not hosts:
            raise _Refused(
                "is not fetched, as image URLs are not allowed here; allow them, or send the picture or a data: URL"
            )
        return _follow(url, hosts, Deadline.of(seconds))
    except _Refused as reason:
        raise ImageError(f"{name} {reason}") from None
    except PrivateAddress as address:
        raise ImageError(f"{name} leads to the private address {address}; use a public host") from None
    except TimeoutError:
        raise ImageError(f"{name} cannot be fetched within {seconds:g} seconds; send the picture itself") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{name} cannot be fetched ({short(str(error))}); check it") from None


def _data(url: str) -> bytes:
    """Raises _Refused and ValueError."""
    if len(url) > MAX_DATA_URL:
        raise _Refused(f"has more than {MAX_DATA_URL:,} characters; scale the picture down")
    header, comma, content = url.partition(",")
    if not comma:
        raise _Refused("has no comma; write data:image/png;base64,...")
    escaped = content.encode()
    if NO_ESCAPE.search(escaped):
        raise _Refused("has a % that begins no escape such as %2B; encode the picture again")
    # Quoted-printable is the same with another sign; its decoder does not make an object of each escape.
    data = binascii.a2b_qp(escaped.replace(b"=", b"=3D").replace(b"%", b"=")) if b"%" in escaped else escaped
    if all(part.strip().lower() != "base64" for part in header.split(";")[1:]):
        return data
    digits = b"".join(data.split()).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise _Refused(f"is not base64 ({error}); encode the picture again") from None


def _follow(url: str, hosts: Hosts, deadline: Deadline) -> bytes:
    """Raises _Refused, OSError, HTTPException, ValueError."""
    for _ in range(MAX_REDIRECTS + 1):
        if len(url) > MAX_URL:
            raise _Refused(f"has more than {MAX_URL:,} characters; use a shorter one")
        content, target = _get(url, hosts, deadline)
        if target is None:
            return content
        url = urljoin(url, target)
    raise _Refused(f"redirects more than {MAX_REDIRECTS} times; give the final URL")


def _get(url: str, hosts: Hosts, deadline: Deadline) -> tuple[bytes, str | None]:
    """One request: the content, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise _Refused("names no host; write https://host/path")
    host, port = _ascii(parts.hostname), PORTS[parts.scheme] if parts.port is None else parts.port
    if hosts is not None and host.lower() not in hosts:
        able = " or ".join(sorted(hosts))
        raise _Refused(f"leads to {short(host, 80)}, which pictures are not fetched from; use {able}")
    sock = connect(host, port, deadline)
    try:
        if parts.scheme == "https":
            sock.settimeout(deadline.left())
            sock = _certificates().wrap_socket(sock, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = _Punctual(sock, deadline)
        connection.request("GET", _path(parts), headers=HEADERS | {"Host": _host(parts, host)})
        response = connection.getresponse()
        if response.status in REDIRECTIONS:
            return b"", quote(response.getheader("Location") or "", UNCHANGED, encoding="latin-1")
        if response.status != 200:
            raise _Refused(f"answers with status {response.status}; check it")
        if (response.length or 0) > MAX_BYTES or len(content := response.read(MAX_BYTES + 1)) > MAX_BYTES:
            raise _Refused(f"has more than {MAX_BYTES:,} bytes; scale the picture down")
        if response.length:
            raise _Refused("ends before all of it has come; try again")
        return content, None
    finally:
        sock.close()


@dataclass(frozen=True)
class _Punctual:
    """A socket as http.client uses it, for which no single wait is longer than what is left of the whole time."""

    socket: socket.socket
    deadline: Deadline

    def sendall(self, data: bytes) -> None:
        self.socket.settimeout(self.deadline.left())
        self.socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Whoever opened it closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, punctual: _Punctual) -> None:
        self._punctual = punctual

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._punctual.socket.settimeout(self._punctual.deadline.left())
        return self._punctual.socket.recv_into(buffer)


@cache
def _certificates() -> ssl.SSLContext:
    """Those that this machine trusts."""
    return ssl.create_default_context()


def _ascii(host: str) -> str:
    """A host's name as it is looked up. Raises _Refused."""
    try:
        if not host.isprintable():
            raise UnicodeError("it has characters that cannot be printed")
        return host.encode("ascii" if host.isascii() else "idna").decode()
    except UnicodeError as error:
        raise _Refused(f"names a host that cannot be looked up ({short(str(error))}); check it") from None


def _host(parts: SplitResult, host: str) -> str:
    """For the header of that name: without a password, with a port that is not the usual one."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if parts.port in (None, PORTS[parts.scheme]) else f"{bracketed}:{parts.port}"


def _path(parts: SplitResult) -> str:
    """What is asked for, in ASCII; escapes stay as they are."""
    return quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), UNCHANGED)
