"""gpu_check without a GPU: what needs none runs, every other line says why it did not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from tests.tolerance import TOLERANCE
from tools.gpu_check import checks
from tools.gpu_check.__main__ import main
from tools.gpu_check.check import Check, Line, Measured, Missing, at_least, at_most, run_check
from tools.gpu_check.interpreter import interpreter
from tools.gpu_check.kernel_checks import compiled_check
from tools.gpu_check.kernel_table import write_table

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these tests are about a machine without a GPU")


def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuple(compiled_check((90,)) if check.name == "compiled" else check for check in checks.CHECKS)
    monkeypatch.setattr(checks, "CHECKS", chosen)
    table, figures = tmp_path / "check.md", tmp_path / "check.json"
    assert main(["--dry-run", "--out", str(table), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text(encoding="utf-8"))["checks"]
    assert set(found) == {check.name for check in checks.CHECKS}
    for check in checks.CHECKS:
        assert [row["line"]["what"] for row in found[check.name]] == [line.what for line in check.lines]
        for row in found[check.name]:
            if check.needs_gpu:
                assert (row["passed"], row["outcome"]["reason"]) == (None, "torch sees no CUDA GPU")
            else:
                assert row["passed"] is True
    markdown = table.read_text(encoding="utf-8")
    assert markdown.count("| torch sees no CUDA GPU |") == sum(len(c.lines) for c in checks.CHECKS if c.needs_gpu)


def test_without_a_gpu_only_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "check.md")]) == 2
    assert capsys.readouterr().err == "torch sees no CUDA GPU; --dry-run does what needs none\n"
    assert main(["--dry-run", "--only", "speed"]) == 2
    assert "speed is no check; there are interpreted, compiled, machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_breaks_is_written_down() -> None:
    def measure() -> object:
        yield Measured(2.0)
        yield Measured(2.0)
        raise RuntimeError("out of memory\nand more")

    lines = (Line("a", "x", at_least(1)), Line("b", "x", at_most(1)), Line("c", "x"), Line("d", "x", at_most(1)))
    results = list(run_check(Check("broken", "", False, lines, measure), None))
    assert [result.passed() for result in results] == [True, False, False, False]
    assert results[3].outcome == Missing("RuntimeError: out of memory", failed=True)


def test_kernel_table(tmp_path: Path) -> None:
    write_table(tmp_path / "kernels.md", (90,))
    rows = [line for line in (tmp_path / "kernels.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert len(rows) == 1 + 5
    assert rows[0] == "| kernel | sm_90 |"
    assert rows[1].startswith("| attend, prefill | ")
    assert not any("spilled" in row for row in rows)


def test_what_is_timed_computes_the_same() -> None:
    """Our kernels, torch's attention and transformers' eager attention on one call: prefill and decode."""
    with interpreter() as process:
        for rows in (90, 1):
            ours, received, theirs, eager = process.submit(_attend_in_every_way, rows).result()
            assert_allclose(ours, theirs, **TOLERANCE["op"])
            assert_allclose(received, eager, **TOLERANCE["op"])
        for measured, lines in process.submit(_measure_without_a_gpu).result():
            assert [outcome.value for outcome in measured] == [1.0] * lines


def _attend_in_every_way(rows: int) -> list[object]:
    from tools.gpu_check.attention import make_call

    call = make_call(rows, 90, "cpu", torch.float32)
    theirs = call.torch_attend().transpose(1, 2).reshape(call.query.shape)
    results = (call.attend().output, call.attend_and_receive()[:, 0], theirs, call.eager(call.causal_mask()))
    return [tensor.numpy() for tensor in results]


def _measure_without_a_gpu() -> list[tuple[list[Measured], int]]:
    """Everything that times attention, on small calls on the CPU, with a clock that stands."""
    from tools.gpu_check import attention

    def milliseconds(function: Callable[[], object]) -> float:
        function()
        return 1.0

    make_call = attention.make_call
    attention.make_call = lambda rows, tokens: make_call(min(rows, 70), min(tokens, 70), "cpu", torch.float32)
    attention.milliseconds, attention.OTHER_CACHES_BYTES = milliseconds, 1 << 20
    return [(list(check.measure()), len(check.lines)) for check in (attention.ATTENTION, attention.TILE_CHOICE)]
