"""The reader of every JSON file of a stranger: values as they are, or one reason why not."""

import json
import os
from pathlib import Path

import pytest

from engine.json_file import MOST_DEPTH, Unreadable, read_bytes, read_json


def write(directory: Path, content: bytes) -> Path:
    path = directory / "file.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, -(10**30), 1e300, None, True, "é 你 😀 \n"]},
        [],
        "text",
        0,
        {"model_max_length": 1000000000000000019884624838656},
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_is_right_is_read_exactly(tmp_path: Path, value: object, ascii_only: bool) -> None:
    assert read_json(write(tmp_path, json.dumps(value, ensure_ascii=ascii_only).encode())) == value


def test_as_deep_as_is_allowed(tmp_path: Path) -> None:
    assert read_json(write(tmp_path, b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)) != []
    with pytest.raises(Unreadable, match="nested more than 32 levels deep"):
        read_json(write(tmp_path, b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested more than 32 levels"),
        (b'{"a":' * 50_000, "nested more than 32 levels"),
        (b"1e999", "1e999 is no finite number"),
        (b"-Infinity", "-Infinity is no finite number"),
        (b"[NaN]", "NaN is no finite number"),
        (b"9" * 5000, "a number of 5000 digits"),
        (b"9" * 65, "a number of 65 digits"),
        (b'"\\ud800"', "half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b"\xff", "codec can't decode"),
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" + b"[]," * (1 << 21) + b"0]", "more than 2097152 objects and lists"),
        (b" " * ((1 << 23) + 1), "more than 8388608 bytes"),
    ],
)
def test_what_is_not(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as raised:
        read_json(write(tmp_path, content))
    assert "\n" not in str(raised.value)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "zero", "loop", "."):
        with pytest.raises((Unreadable, FileNotFoundError)):
            read_bytes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
