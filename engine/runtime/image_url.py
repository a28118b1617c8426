"""Pictures and clips by URL: `data:` always; http and https only where allowed, and never from a private address."""

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

MAX_URL = 8192
"""Characters of any other."""

MAX_REDIRECTS = 3
Found = TypeVar("Found")
Hosts = Collection[str] | None
EVERY_HOST: Hosts = None
"""With a public address."""
NO_HOST: Hosts = ()
LEAST_SECONDS = 0.001
"""For what has no time of its question left: that ends it with what is wrong."""

PORTS = {"http": 80, "https": 443}
REDIRECTIONS = (301, 302, 303, 307, 308)
USER_AGENT = f"sgl-engine/{engine.__version__}"
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
UNCHANGED = "%!#$&'()*+,/:;=?@[]~"
"""What stands for itself in a URL; everything else is escaped."""


@dataclass(frozen=True)
class Medium:
    """What comes by URL. name: of it in a sentence; type: of its media types; bytes: at most; less: what makes it
    smaller; seconds: for all of it, looking the host up, connecting, redirections, and the content.
    """

    name: str
    type: str
    bytes: int
    less: str
    seconds: float

    def characters(self) -> int:
        """Of a data: URL at most: as many as the bytes take in base64, and what stands before them."""
        return self.bytes * 4 // 3 + 1000


PICTURE = Medium("picture", "image", 32_000_000, "scale the picture down", 10.0)
CLIP = Medium("clip", "video", 256_000_000, "cut it or scale it down", 60.0)


class _Refused(Exception):
    """Why a URL is, as the sentence that its name begins."""


def find_all(
    places: Sequence[str], find: Callable[[str, float], Found], timeout: float | None, medium: Medium = PICTURE
) -> list[Found]:
    """What `find` gives for each place within the seconds that it is told: all of them together have the time of one,
    and no more than `timeout`, what is left of their question's. Raises what it raises."""
    end = time.monotonic() + (medium.seconds if timeout is None else min(medium.seconds, timeout))
    return [find(place, max(end - time.monotonic(), LEAST_SECONDS)) for place in places]


def fetch(url: str, hosts: Hosts, seconds: float | None = None, medium: Medium = PICTURE) -> bytes:
    """The bytes behind a URL; http(s) ones within so many seconds in all, or the medium's own, from these hosts.
    Raises ImageError."""
    url = url.strip()
    name = f"{medium.type} URL {short(url, 80)}"
    seconds = medium.seconds if seconds is None else seconds
    scheme = url.partition(":")[0].lower()
    try:
        if scheme == "data":
            return _data(url, medium)
        if scheme not in PORTS:
            raise _Refused(f"is neither data:, http: nor https:; send the {medium.name} itself")
        if hosts is not None and not hosts:
            raise _Refused(
                f"is not fetched, as {medium.type} URLs are not allowed here; allow them, or send the {medium.name} "
                "or a data: URL"
            )
        return _follow(url, hosts, Deadline.of(seconds), medium)
    except _Refused as reason:
        raise ImageError(f"{name} {reason}") from None
    except PrivateAddress as address:
        raise ImageError(f"{name} leads to the private address {address}; use a public host") from None
    except TimeoutError:
        raise ImageError(
            f"{name} cannot be fetched within {seconds:g} seconds; send the {medium.name} itself"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{name} cannot be fetched ({short(str(error))}); check it") from None


def _data(url: str, medium: Medium) -> bytes:
    """Raises _Refused and ValueError."""
    if len(url) > medium.characters():
        raise _Refused(f"has more than {medium.characters():,} characters; {medium.less}")
    header, comma, content = url.partition(",")
    if not comma:
        raise _Refused(f"has no comma; write data:{'image/png' if medium is PICTURE else 'video/mp4'};base64,...")
    escaped = content.encode()
    if NO_ESCAPE.search(escaped):
        raise _Refused(f"has a % that begins no escape such as %2B; encode the {medium.name} again")
    # Quoted-printable is the same with another sign; its decoder does not make an object of each escape.
    data = binascii.a2b_qp(escaped.replace(b"=", b"=3D").replace(b"%", b"=")) if b"%" in escaped else escaped
    if all(part.strip().lower() != "base64" for part in header.split(";")[1:]):
        return data
    digits = b"".join(data.split()).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise _Refused(f"is not base64 ({error}); encode the {medium.name} again") from None


def _follow(url: str, hosts: Hosts, deadline: Deadline, medium: Medium) -> bytes:
    """Raises _Refused, OSError, HTTPException, ValueError."""
    for _ in range(MAX_REDIRECTS + 1):
        if len(url) > MAX_URL:
            raise _Refused(f"has more than {MAX_URL:,} characters; use a shorter one")
        content, target = _get(url, hosts, deadline, medium)
        if target is None:
            return content
        url = urljoin(url, target)
    raise _Refused(f"redirects more than {MAX_REDIRECTS} times; give the final URL")


def _get(url: str, hosts: Hosts, deadline: Deadline, medium: Medium) -> tuple[bytes, str | None]:
    """One request: the content, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise _Refused("names no host; write https://host/path")
    host, port = _ascii(parts.hostname), PORTS[parts.scheme] if parts.port is None else parts.port
    if hosts is not None and host.lower() not in hosts:
        able = " or ".join(sorted(hosts))
        raise _Refused(f"leads to {short(host, 80)}, which {medium.name}s are not fetched from; use {able}")
    sock = connect(host, port, deadline)
    try:
        if parts.scheme == "https":
            sock.settimeout(deadline.left())
            sock = _certificates().wrap_socket(sock, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = _Punctual(sock, deadline)
        headers = {"Accept": f"{medium.type}/*", "User-Agent": USER_AGENT, "Host": _host(parts, host)}
        connection.request("GET", _path(parts), headers=headers)
        response = connection.getresponse()
        if response.status in REDIRECTIONS:
            return b"", quote(response.getheader("Location") or "", UNCHANGED, encoding="latin-1")
        if response.status != 200:
            raise _Refused(f"answers with status {response.status}; check it")
        most = medium.bytes
        if (response.length or 0) > most or len(content := response.read(most + 1)) > most:
            raise _Refused(f"has more than {most:,} bytes; {medium.less}")
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
