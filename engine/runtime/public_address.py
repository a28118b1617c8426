"""Which addresses a stranger's URL may lead to, and connecting to them in time."""

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes."""

RESERVED = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("3fff::/20"))
"""Not public either, though older Pythons say so."""

LOOK_UPS = threading.BoundedSemaphore(32)
"""Look-ups that run: one that nobody waits for any more cannot be stopped."""


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic()` by which everything has to be done."""

    end: float

    @classmethod
    def of(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, more than 0. Raises TimeoutError."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        return left


class PrivateAddress(OSError):
    """A host that leads into a private network."""


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """To the first of a host's addresses that answers. Raises OSError, PrivateAddress where any of them is private.

    It is looked up once: a second look-up could name other addresses than those that were checked.
    """
    addresses = _look_up(host, port, deadline)
    for address in addresses:
        if not is_public(address):
            raise PrivateAddress(address)
    reason: OSError = OSError("it has no address")
    for index, address in enumerate(addresses):
        try:
            # A share of the time for each that is left.
            return socket.create_connection((address, port), deadline.left() / (len(addresses) - index))
        except OSError as error:
            reason = error
    deadline.left()
    raise reason


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also when it is written as IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF) if parsed in NAT64 else None
        embedded = parsed.ipv4_mapped or parsed.sixtofour or translated
        if embedded is None and parsed not in GLOBAL_UNICAST:
            return False
        parsed = embedded or parsed
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in RESERVED)


def _look_up(host: str, port: int, deadline: Deadline) -> Sequence[str]:
    """The addresses of a host, those to try first at the front. Raises OSError."""
    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except Exception as error:  # of a name that cannot be one, a ValueError
            found.put(error if isinstance(error, OSError) else OSError(str(error)))
        finally:
            turns.release()

    turns = LOOK_UPS
    if not turns.acquire(timeout=deadline.left()):
        raise TimeoutError("too many hosts are looked up")
    threading.Thread(target=look_up, daemon=True).start()
    try:
        outcome = found.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError("looking it up takes too long") from None
    if isinstance(outcome, OSError):
        raise outcome
    return outcome
