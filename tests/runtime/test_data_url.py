"""Pictures within their URL, as people and browsers write them."""

import base64

import pytest

from engine.runtime import image_url
from engine.runtime.image_url import NO_HOST, fetch


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("head", ["", "image/png", " image/png ", "image/png;charset=utf-8", "text/plain;a=b;c=d"])
@pytest.mark.parametrize("mark", [";base64", "; base64", ";BASE64", ";base64;charset=utf-8", "; base64 ; a=b"])
def test_base64(head: str, mark: str) -> None:
    assert fetch(f"data:{head}{mark},{encode(b'pixels!')}", hosts=NO_HOST) == b"pixels!"


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (encode(b"pix"), b"pix"),
        (encode(b"pixels!").rstrip("="), b"pixels!"),
        (encode(b"pixels!").replace("=", "%3D"), b"pixels!"),
        ("cGl4\r\n  ZWxz\t", b"pixels"),
        ("++//", b"\xfb\xef\xff"),
        ("%2b%2B%2F/", b"\xfb\xef\xff"),
        ("", b""),
    ],
)
def test_base64_as_people_write_it(content: str, data: bytes) -> None:
    assert fetch(f" DATA:image/png;base64,{content}", hosts=NO_HOST) == data


@pytest.mark.parametrize(
    ("content", "data"),
    [
        ("a%20b", b"a b"),
        ("%00%ff%FF%3D%3d==%25", b"\0\xff\xff====%"),
        ("a=\r\nb", b"a=\r\nb"),
        ("é,%C3%A9", "é,é".encode()),
        ("", b""),
    ],
)
def test_percent_encoding(content: str, data: bytes) -> None:
    assert fetch(f"data:,{content}", hosts=NO_HOST) == data
    everything = bytes(range(256)) * 9
    assert fetch("data:," + "".join(f"%{byte:02x}" for byte in everything), hosts=NO_HOST) == everything


def test_the_limits_are_one() -> None:
    """A picture of the largest size fits into a data: URL."""
    url = f"data:image/png;charset=utf-8;base64,{encode(bytes(image_url.PICTURE.bytes))}"
    assert len(fetch(url, hosts=NO_HOST)) == image_url.PICTURE.bytes
