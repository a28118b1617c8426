"""The results as one table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.gpu_check.check import Check, Measured, Result

HEADER = """# GPU check

Written by `{command}`: every line with its target, and why a line has no value.

{machine}
"""


def markdown(results: Mapping[Check, Sequence[Result]], machine: str, command: str) -> str:
    parts = [HEADER.format(command=command, machine=machine)]
    for check, rows in results.items():
        parts.append(f"## {check.title}\n\n| what | target | measured | passed | remarks |\n|---|---|---|---|---|")
        parts += [_table_row(row) for row in rows]
        parts.append("")
    return "\n".join(parts)


def as_json(results: Mapping[Check, Sequence[Result]], machine: str) -> dict[str, Any]:
    checks = {check.name: [asdict(row) | {"passed": row.passed()} for row in rows] for check, rows in results.items()}
    return {"machine": machine.splitlines(), "checks": checks}


def _table_row(result: Result) -> str:
    line, outcome = result.line, result.outcome
    target = f"{line.target.bound} {_number(line.target.value)} {line.unit}" if line.target else ""
    mark = {True: "✓", False: "✗", None: ""}[result.passed()]
    if isinstance(outcome, Measured):
        value, note = f"{_number(outcome.value)} {line.unit}", outcome.note
    else:
        value, note = "failed" if outcome.failed else "not run", outcome.reason
    return "| " + " | ".join(cell.replace("|", "/").strip() for cell in (line.what, target, value, mark, note)) + " |"


def _number(value: float) -> str:
    """Four digits; thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
