"""The loop's whole life: memory after many questions, and the interpreter's end with some in flight."""

import gc
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.config import ExitConfig, SamplingConfig
from engine.errors import ImageError
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question

SECONDS = 300.0
"""For what takes a few; a test fails rather than hangs."""

BEGIN = """
import sys, threading
from engine.config import ExitConfig, SamplingConfig
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
pipeline = SglPipeline.load(sys.argv[1], threads=1)
long = Question((), "Hello", exit=ExitConfig(enabled=False), sampling=SamplingConfig(max_new_tokens=900))
tickets = [pipeline.submit(long) for _ in range(3)]
"""
ENDS = {
    "at once": "",
    "while it says something": "next(iter(tickets[0]))",
    "by an exception": "next(iter(tickets[0])); sys.exit(0)",
    "with somebody waiting": "threading.Thread(target=lambda: print(type(tickets[0].wait()).__name__)).start()",
    "with nothing asked": "[ticket.cancel() for ticket in tickets]; [ticket.wait() for ticket in tickets]",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_interpreter_ends_with_questions_in_flight(engine_directory: Path, end: str) -> None:
    command = [sys.executable, "-c", BEGIN + end, str(engine_directory)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def rss() -> int:
    """Bytes of this process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def settled(measure: Callable[[], int]) -> int:
    gc.collect()
    return measure()


def test_memory_does_not_grow(engine_directory: Path) -> None:
    """After 1,000 questions it is what it was after 100: short ones, few with a picture, some fail or are cancelled."""
    files = []
    for size in (40, 60, 80):
        file = io.BytesIO()
        Image.effect_noise((size, 50), 90).convert("RGB").save(file, "PNG")
        files.append(file.getvalue())
    sampling = SamplingConfig(max_new_tokens=1)

    def make(number: int) -> Question:
        images = () if number % 10 else (files[number // 10 % 3],)
        if number % 20 == 7:
            return Question((b"no picture",), "What?", sampling=sampling)
        return Question(images, f"Question {number}", exit=ExitConfig(exit_threshold=number % 2), sampling=sampling)

    with SglPipeline.load(engine_directory, threads=1, feature_cache=2**20) as pipeline:

        def run(start: int, stop: int) -> None:
            outcomes = pipeline.answer_all(make(number) for number in range(start, stop))
            for number, outcome in enumerate(outcomes, start):
                assert isinstance(outcome, ImageError if number % 20 == 7 else Answer)
                if number % 10 == 3:
                    pipeline.submit(make(number)).cancel()

        run(0, 100)
        after_100 = settled(rss)
        run(100, 1000)
        assert settled(rss) <= after_100 * 1.05 + 4 * 2**20
        assert pipeline.drain(SECONDS)
        assert pipeline.load_now().kv_memory_used == 0
