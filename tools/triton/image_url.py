"""Pictures by URL: `data:` always; http and https only where allowed, and never from a private address."""

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from engine.errors import ImageError

MAX_BYTES = 32_000_000
MAX_REDIRECTS = 3
SECONDS = 10.0
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes."""


def fetch(url: str, allow_http: bool) -> bytes:
    """The bytes behind a URL. Raises ImageError."""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _data(url)
    if scheme not in ("http", "https"):
        raise ImageError(f"image URL {shorten(url)} is neither data:, http: nor https:; send image_bytes_input")
    if not allow_http:
        raise ImageError(
            f"image URL {shorten(url)} is not fetched by this server; send a data: URL or image_bytes_input, "
            "or export the repository with --allow-image-urls"
        )
    try:
        for _ in range(MAX_REDIRECTS + 1):
            content, target = _get(url)
            if target is None:
                return content
            url = urljoin(url, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"image URL {shorten(url)} cannot be fetched ({error}); check it") from None
    raise ImageError(f"image URL {shorten(url)} redirects more than {MAX_REDIRECTS} times; give the final URL")


def shorten(url: str) -> str:
    return url if len(url) <= 80 else f"{url[:80]}..."


def _data(url: str) -> bytes:
    header, comma, content = url.partition(",")
    if not comma:
        raise ImageError(f"image URL {shorten(url)} has no comma; write data:image/png;base64,...")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ImageError(f"image URL {shorten(url)} is not base64 ({error}); encode the picture again") from None


def _get(url: str) -> tuple[bytes, str | None]:
    """One request: the content, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError(f"image URL {shorten(url)} names no host; write https://host/path")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    # Connected to the address that was checked: a second look-up could name another one.
    sock = socket.create_connection((_public_address(parts.hostname, port, url), port), SECONDS)
    if parts.scheme == "https":
        sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=SECONDS)
    connection.sock = sock
    with sock:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Host": parts.netloc.rpartition("@")[2], "Accept": "image/*"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return b"", response.getheader("Location") or ""
        if response.status != 200:
            raise ImageError(f"image URL {shorten(url)} answers with status {response.status}; check it")
        content = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ImageError(f"image URL {shorten(url)} has more than {MAX_BYTES:,} bytes; scale the picture down")
    return content, None


def _public_address(host: str, port: int, url: str) -> str:
    """Raises ImageError unless every address of the host is a public one."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for address in found:
        if not is_public(address):
            raise ImageError(f"image URL {shorten(url)} leads to the private address {address}; use a public host")
    return min(found)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also when it is written as IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF) if parsed in NAT64 else None
        embedded = parsed.ipv4_mapped or parsed.sixtofour or translated
        if embedded is None and parsed not in GLOBAL_UNICAST:
            return False
        parsed = embedded or parsed
    return parsed.is_global and not parsed.is_multicast
