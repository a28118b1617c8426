"""What stands before everything else: who may ask, from where, and how much may be sent."""

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from engine.serve.http.errors import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_BODY = 64_000_000
"""Bytes of a request."""
LONGEST_NAME = 255
"""Characters of a client's name, where a proxy gives one that is no address."""
IPV6_PREFIX = 64
CLIENT_BODIES, ALL_BODIES = 4, 16
"""Of the largest size, as many bytes may be in flight for one client, and for all."""


@dataclass(frozen=True)
class Access:
    """host: the address that is bound. api_key: without it nothing of /v1 is answered, if there is one."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    max_body: int = MOST_BODY
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks; of their requests, X-Forwarded-For says who the client is."""

    def is_local(self) -> bool:
        return _is_loopback(self.host)


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope["method"], scope["path"], headers)
        except Refusal as refusal:
            refusal.headers["Connection"] = "close"
            await refusal.response()(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # Is answered like GET; the server leaves the body out.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _check(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Raises Refusal."""
        if self._access.is_local() and not self._access.api_key and not _is_local_name(headers.get("host", "")):
            # A page elsewhere that lets its own name lead here would else read what it likes.
            raise Refusal(421, f"host {headers.get('host', '')[:80]!r} is not served; ask for 127.0.0.1, or use a key")
        if self._access.api_key is not None and path.startswith("/v1/"):
            kind, _, key = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._access.api_key.encode()):
                raise Refusal(401, "the API key is missing or wrong; send the header Authorization: Bearer KEY")
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy that believes the other one would see other requests than this server.
            raise Refusal(400, "the request has both Transfer-Encoding and Content-Length; send one of them")
        if method == "POST":
            # No form of another site's page can send it without asking first.
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise Refusal(415, "the request is no JSON by its Content-Type; send application/json")
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > self._access.max_body:
                raise _too_large(self._access.max_body)


async def read_body(receive: Receive, most: int, hold: Callable[[int], None]) -> bytes:
    """Raises Refusal, also for a client that leaves before it has sent all. hold: takes room for so many bytes more."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the client has gone before it sent all of the request")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        hold(len(part))
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(most: int) -> Refusal:
    said = f"the request has more than {most:,} bytes; send smaller pictures or clips"
    return Refusal(413, said, headers={"Connection": "close"})


def client_of(scope: Scope) -> str:
    """Whose bytes a request's are. Of IPv6, who has one address mostly has all of its 64 bits."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return str(host)[:LONGEST_NAME]
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((int(address), IPV6_PREFIX), strict=False))


class InFlight:
    """Bytes of requests that came and are not answered yet, by client; of one thread."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._bytes: Counter[str] = Counter()
        self.requests = 0
        """That have come whole."""

    @contextmanager
    def hold(self, client: str) -> Iterator[Callable[[int], None]]:
        """-> takes room for so many bytes more, until the end; raises Refusal where there would be too many."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            for now, bodies in ((self._bytes[client], CLIENT_BODIES), (self._bytes.total(), ALL_BODIES)):
                if now + size > bodies * self._max_body:
                    said = "too many bytes of pictures and clips wait for their answers already; ask again later"
                    raise Refusal(429, said, headers={"Connection": "close"})
            self._bytes[client] += size
            held += size

        try:
            yield take
        finally:
            self._bytes[client] -= held
            if not self._bytes[client]:
                del self._bytes[client]

    @contextmanager
    def count(self) -> Iterator[None]:
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_local_name(header: str) -> bool:
    try:
        return _is_loopback(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return False
