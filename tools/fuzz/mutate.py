"""Ways to spoil a file: bytes of any format, and values of a parsed JSON file."""

import copy
import json
import random
from typing import Any

Value = Any
HUGE = [0, -1, 1, 2, 255, 1 << 16, 1 << 31, (1 << 63) - 1, 1 << 63, 10**29, -(1 << 63), 10**400]
ODD: list[Value] = [
    *(None, True, False, 0.5, -0.0, 1e308, 1e999, -1e999),
    *("", "x", "\0", "é", "\ud800", "../x", "/x", "x" * 300),
    *([], {}, [[]], {"a": 1}, [None], ["x"], [1, "x"], {"": None}),
]


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to three local changes."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice([1, 1, 2, 4, 16, 256, len(data)]))
        match rng.randrange(6):
            case 0:
                data = data[:start]
            case 1:
                data = data[:start] + data[stop:]
            case 2:
                data = data[:start] + rng.randbytes(min(stop - start, 64)) + data[stop:]
            case 3:
                data = data[:start] + data[start:stop] + data[start:]
            case 4:
                data = data[:start] + rng.choice([b"\0", b"\xff", b"\xff" * 8, b"{", b"[", b'"', b"9"]) + data[start:]
            case _:
                place = rng.randrange(len(data)) if data else 0
                data = data[:place] + bytes([(data[place] if data else 0) ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data


def odd_value(rng: random.Random) -> Value:
    return copy.deepcopy(rng.choice(HUGE) if rng.random() < 0.4 else rng.choice(ODD))


def places(value: Value, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all values inside of a parsed JSON value, itself first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for name, item in inside for place in places(item, (*path, name))]


def spoil_json(rng: random.Random, value: Value) -> Value:
    """One value inside of a parsed JSON file replaced, removed, renamed, doubled or taken from elsewhere in it."""
    everywhere = places(value)
    if len(everywhere) == 1:
        return odd_value(rng)
    last: Any
    *way, last = rng.choice(everywhere[1:])
    value = copy.deepcopy(value)
    parent = value
    for name in way:
        parent = parent[name]
    match rng.randrange(8):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["", "x", "\0", last + last, last.upper()])] = parent.pop(last)
        case 2 if isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        case 3:
            parent[last] = copy.deepcopy(_at(value, rng.choice(everywhere)))
        case 4 if isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] = parent[last] * rng.choice([-1, 2, 3, 10, 1000]) + rng.choice([-1, 0, 1])
        case _:
            parent[last] = odd_value(rng)
    return value


def json_bytes(rng: random.Random, value: Value) -> bytes:
    """A parsed file as text again, now and then in a form that readers stumble over."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    match rng.randrange(40):
        case 0:
            return b"[" * 100_000
        case 1:
            return b'{"a":' * 50_000
        case 2:
            return text.replace(b"{", b'{"twice": 1, "twice": 2, ', 1).replace(b", }", b"}")
        case 3:
            return b"\xef\xbb\xbf" + text
        case 4:
            return text.decode("utf-8", "replace").encode("utf-16")
        case 5:
            return b"9" * 5000
        case 6:
            return spoil_bytes(rng, text)
    return text


def _at(value: Value, path: tuple[str | int, ...]) -> Value:
    for name in path:
        value = value[name]
    return value
