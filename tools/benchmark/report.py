"""docs/benchmarks.md: one generated block for each question; text outside the blocks belongs to people."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tools.benchmark.interleave import Spread

HEADER = """# Benchmarks

Written by `python -m tools.benchmark`: it replaces what stands between its markers and keeps everything else.
Models have random weights, of published dimensions unless a section says others. A figure is the median, the quartiles
in brackets.
"""
FOOTER = """
## Predictions and findings

Written by hand.
"""


class Unit(StrEnum):
    RATIO = "x"
    SHARE = "%"
    MIB = "MiB"
    SECONDS = "s"
    COSINE = "cosine"


@dataclass(frozen=True)
class Row:
    """One line of a table. spread: None when nothing could be measured, and `note` says why.

    target: the most that passes, of a cosine the least; None is information.
    """

    what: str
    spread: Spread | None
    target: float | None = None
    unit: Unit = Unit.RATIO
    note: str = ""

    def passed(self) -> bool | None:
        if self.spread is None or self.target is None:
            return None
        return self.spread.median >= self.target if self.unit is Unit.COSINE else self.spread.median <= self.target


@dataclass(frozen=True)
class Section:
    """The answer to one question. setting: what was measured, a sentence or more."""

    title: str
    setting: str
    rows: list[Row]
    remarks: list[str] = field(default_factory=list)


def not_measured(what: str, reason: str, target: float | None = None) -> Row:
    return Row(what, None, target, note=reason)


def section_markdown(section: Section, command: str, stamp: str) -> str:
    """stamp: when and with which versions."""
    lines = [
        f"## {section.title}",
        "",
        section.setting,
        "",
        "| what | target | measured | passed | remarks |",
        "|---|---|---|---|---|",
    ]
    for row in section.rows:
        mark = {True: "✓", False: "✗", None: ""}[row.passed()]
        lines.append(f"| {row.what} | {_target(row)} | {_measured(row)} | {mark} | {row.note} |")
    lines += ["", *(f"- {remark}" for remark in section.remarks), f"- Again: `{command}`", f"- {stamp}"]
    return "\n".join(lines)


def write_markdown(path: Path, blocks: Mapping[str, str], order: Sequence[str]) -> None:
    """Put each block between its markers, new ones at their place in `order`; the rest of the file stays as it is."""
    text = path.read_text(encoding="utf-8") if path.exists() else HEADER + FOOTER
    for name in order:
        if name not in blocks:
            continue
        block = f"{_marker(name, 'begin')}\n{blocks[name]}\n{_marker(name, 'end')}"
        existing = re.compile(re.escape(_marker(name, "begin")) + ".*?" + re.escape(_marker(name, "end")), re.DOTALL)
        if found := existing.search(text):
            text = text[: found.start()] + block + text[found.end() :]
            continue
        place = _place(text, order, order.index(name))
        text = f"{text[:place].rstrip()}\n\n{block}\n\n{text[place:].lstrip()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def section_json(section: Section) -> dict[str, Any]:
    rows = [asdict(row) | {"passed": row.passed()} for row in section.rows]
    return asdict(section) | {"rows": rows}


def _marker(name: str, edge: str) -> str:
    return f"<!-- benchmark {name} {edge} -->"


def _place(text: str, order: Sequence[str], index: int) -> int:
    """Behind the last block that belongs before, else before the first that belongs behind, else after the head."""
    for name in reversed(order[:index]):
        marker = _marker(name, "end")
        if marker in text:
            return text.index(marker) + len(marker)
    later = [text.find(_marker(name, "begin")) for name in order[index + 1 :]]
    found = [place for place in (*later, text.find("\n## ")) if place >= 0]
    return min(found, default=len(text))


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{'at least' if row.unit is Unit.COSINE else 'at most'} {_number(row.target, row.unit)}"


def _measured(row: Row) -> str:
    if row.spread is None:
        return "not measured"
    median, low, high = (_number(value, row.unit) for value in (row.spread.median, row.spread.low, row.spread.high))
    return median if row.spread.count == 1 else f"{median} ({low} to {high})"


def _number(value: float, unit: Unit) -> str:
    match unit:
        case Unit.RATIO:
            return f"{value:.3f}"
        case Unit.SHARE:
            return f"{100 * value:.1f} %"
        case Unit.MIB:
            return f"{value / 2**20:,.1f} MiB"
        case Unit.SECONDS:
            return f"{value:,.1f} s"
        case Unit.COSINE:
            return f"{value:.4f}"
