"""No spelling of a private address is connected to, and public ones are told from all others."""

import socket

import pytest

from engine.errors import ImageError
from engine.runtime.image_url import EVERY_HOST, fetch
from engine.runtime.public_address import is_public

PRIVATE = """
127.0.0.1 127.1 127.0.1 127.255.255.254 2130706433 0x7f000001 0x7F.0.0.1 0x7f.1 0177.0.0.1 0177.1 017700000001
127.0.0.1. 127.000.000.001 localhost LOCALHOST localhost. %31%32%37.0.0.1 127%2e0%2e0%2e1 127。0。0。1 １２７.0.0.1
①②⑦.0.0.1 0 0.0.0.0 00.0.0.0 0x0 [::1] [::] [0:0:0:0:0:0:0:1] [0000:0000::0001] [::ffff:127.0.0.1] [::ffff:7f00:1]
[::ffff:0:127.0.0.1] [::127.0.0.1] [::7f00:1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1]
[2002:7f00:1::] [2001:0:4136:e378:8000:63bf:80ff:fffe] [::1%25lo] [::1%25]
10.0.0.1 10.255.255.255 012.0.0.1 0xa000001 167772161 172.16.0.1 172.31.255.255 192.168.0.1 192.168.257 3232235521
169.254.169.254 0xa9fea9fe 2852039166 0251.0376.0251.0376 100.64.0.1 192.0.0.8 192.0.2.1 198.18.0.1 198.51.100.1
203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 [fe80::1] [fe80::1%25eth0] [fc00::1] [fd00:ec2::254]
[fec0::1] [ff02::1] [ff0e::1] [100::1] [2001:db8::1] [3fff::1] [5f00::1] [4000::1] [::ffff:10.0.0.1] [::ffff:a9fe:a9fe]
[64:ff9b::a00:1] [64:ff9b::169.254.169.254] [2002:a00:1::1] [2002:c0a8:1::1] [2002:a9fe:a9fe::1]
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("spelling", PRIVATE.split())
def test_no_spelling_of_a_private_address_is_connected_to(
    spelling: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: object, **named: object) -> None:
        raise AssertionError(f"connected to {args}")

    monkeypatch.setattr(socket, "create_connection", connect)
    for url in (f"{scheme}://{spelling}/", f"{scheme}://{spelling}:8000/x.png", f"{scheme}://a.example@{spelling}/"):
        with pytest.raises(ImageError, match=r"leads to the private address|cannot be fetched|cannot be looked up"):
            fetch(url, hosts=EVERY_HOST)


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
        ("::ffff:93.184.215.14", True),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("64:ff9b:1::5db8:d70e", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public
