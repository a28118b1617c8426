"""What is different between two settings, in words."""

from collections.abc import Iterator
from typing import Any

from engine.runtime.words import short

MOST_TOLD = 3
MOST_CHARACTERS = 60


def differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Their names, such as `model and options`, with what was and what is; nothing where they are the same."""
    names = [name for name in now | before if before.get(name) != now.get(name)]
    told = [sentence for name in names for sentence in _leaves(name, before.get(name), now.get(name))]
    more = [f"{len(told) - MOST_TOLD} more"] * (len(told) > MOST_TOLD)
    return f"{' and '.join(names)} ({'; '.join(told[:MOST_TOLD] + more)})" if names else ""


def _leaves(name: str, before: Any, now: Any) -> Iterator[str]:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for inner in now | before:
            yield from _leaves(f"{name}.{inner}", before.get(inner), now.get(inner))
    else:
        yield f"{name} {_said(before)} instead of {_said(now)}"


def _said(value: Any) -> str:
    return "none" if value is None else short(str(value), MOST_CHARACTERS)
