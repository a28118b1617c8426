"""gpu_check without a GPU: what needs none runs, every other line says why it did not."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from engine.families import family_of
from engine.families import published as published_directory
from engine.runtime.pipeline import SglPipeline
from engine.target import Device, Precision, Target
from tests.tolerance import TOLERANCE
from tools.gpu_check import attention, checks, engine_checks, speed
from tools.gpu_check.__main__ import main
from tools.gpu_check.apart import run_apart
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


def dying(name: str) -> Check:
    """Whose process measures one line, and then does what it is called."""

    def measure() -> Iterator[Measured]:
        yield Measured(2.0)
        if name == "aborts":
            os.abort()
        time.sleep(600)

    return Check(name, "", True, (Line("a", "x", at_least(1)), Line("b", "x"), Line("c", "x")), measure)


@pytest.mark.parametrize(
    ("name", "longest", "reason"),
    [("aborts", 600, f"its process ended with status -{int(signal.SIGABRT)}"), ("hangs", 1, "no answer within 1 s")],
)
def test_a_check_that_takes_its_process_along(
    name: str, longest: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that breaks the GPU's context does."""
    poll, polls = Connection.poll, count()
    # until the process has started, however long that takes
    monkeypatch.setattr(Connection, "poll", lambda ours, longest: poll(ours, longest if next(polls) else 600))
    results = list(run_apart(dying(name), dying, longest))
    assert [result.outcome for result in results] == [Measured(2.0), *[Missing(reason, failed=True)] * 2]


def test_eager_attention_may_need_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(function: Callable[[], object]) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "milliseconds", too_large)
    calls = repeat(attention.make_call(3, 70, "cpu", torch.float32))
    assert attention._compare_eager(calls, 1.0) == Missing("all weights do not fit into this GPU's memory")


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


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_engine_against_itself_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: int) -> None:
    """What is compared on a GPU, with the CPU engine in both places."""
    open_pair = engine_checks.open_pair

    def on_the_cpu(
        work: Path, name: str, target: Target, precision: Precision, device: Device, *settings: int
    ) -> SglPipeline:
        return open_pair(work, name, Target.ONNXRUNTIME, Precision.FP32, Device.CPU, *settings)

    monkeypatch.setattr(engine_checks, "open_pair", on_the_cpu)
    values = [outcome.value for outcome in engine_checks.compare(tmp_path, Target.TENSORRT_RTX, Precision.BF16, ranks)]
    assert values == pytest.approx([1, 0, 0, 1, 1], abs=0 if ranks == 1 else 1e-4)
    assert len(values) == len(engine_checks.RTX.lines)


def test_ranks_want_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    results = list(run_check(engine_checks.RANKS_RTX, None))
    reason = "torch sees 1 GPU, and each rank needs one of its own"
    assert [result.outcome for result in results] == [Missing(reason)] * len(engine_checks.RANKS_RTX.lines)


def test_what_does_not_agree_is_counted() -> None:
    assert [engine_checks.agreement(ours, (1, 2, 3)) for ours in ((1, 2, 3), (1, 2), (1, 5, 3), (4, 2, 3))] == [
        3,
        2,
        1,
        0,
    ]
    assert engine_checks.relative_error(np.array([1.0, -3]), np.array([1.0, -4])) == 0.25


def test_an_engine_that_cannot_be_built_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for check in (engine_checks.TENSORRT, speed.SPEED_TENSORRT):
        results = list(run_check(check, None))
        assert len(results) == len(check.lines)
        for result in results:
            assert isinstance(result.outcome, Missing) and not result.outcome.failed
            assert result.outcome.reason.endswith("pip install 'sgl-engine[tensorrt]'")


def test_what_a_phase_needs() -> None:
    """Qwen2-0.5B: 494 million parameters, each of which a token reads and multiplies with."""
    family, published = family_of(published_directory("InternVL2-1B"))
    config = family.read_config(published_directory("InternVL2-1B"), published).language
    caches = 24 * 2 * 2 * 64 * 2 * 1000
    assert speed.decode_bytes(config, 1000) - caches == pytest.approx(2 * 494e6, rel=0.01)
    # Behind the last attention only one row goes on.
    once = 896 * 896 + 3 * 896 * 4864 + 151_655 * 896
    assert speed.prefill_operations(config, 100) == pytest.approx(2 * (100 * (494e6 - once) + once), rel=0.01)
