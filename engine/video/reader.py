"""Reading a clip: its chosen frames, streamed out of a process that decodes it apart, or one sentence."""

import importlib.util
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import PIL
from PIL import Image

import engine
from engine.errors import EngineError, ImageError, RequestError
from engine.runtime.images import apart
from engine.runtime.images.limits import Unfit, check_size
from engine.runtime.images.source import stored_file
from engine.runtime.images.stored import BLOCK, Stored
from engine.runtime.words import short
from engine.video.clip import Clip
from engine.video.facts import Choose, ClipFacts
from engine.video.formats import READ, detect
from engine.video.limits import ClipLimits
from engine.video.task import Task

UNNAMED = "the clip"
PROGRAM = "engine.video.reader_process"
MOST = min(4, len(os.sched_getaffinity(0)))
"""Clips that are read at once, and threads that decode each."""

LONGEST_REPLY = 4096
LIMITS = ClipLimits()
LIBRARY = "av"
MISSING = "clips are read with PyAV, which is not installed; pip install 'sgl-engine[video]'"
CHEAPER = "choose fewer frames, cut it, or scale it down"

_turns = threading.BoundedSemaphore(MOST)


def read_clip(source: Path | str | bytes, choose: Choose, limits: ClipLimits = LIMITS) -> Clip:
    """The chosen frames of a clip; may be called from many threads. Raises ImageError, and what `choose` raises.

    What is missing, broken, no clip, or too much to decode safely, ends in one sentence that names it.
    """
    name = UNNAMED if isinstance(source, bytes) else short(str(source))
    try:
        if isinstance(source, bytes):
            return _read(Stored.of(source), choose, limits)
        with stored_file(Path(source), name) as stored:
            return _read(stored, choose, limits)
    except Unfit as reason:
        raise ImageError(f"{name} {reason}") from None
    except MemoryError:
        raise ImageError(f"{name} needs more memory than there is; {CHEAPER}") from None


def _read(stored: Stored, choose: Choose, limits: ClipLimits) -> Clip:
    """Raises Unfit, EngineError, and what `choose` raises."""
    if stored.size > limits.bytes:
        raise Unfit(f"has more than {limits.bytes:,} bytes; cut it or scale it down")
    if not stored.size:
        raise Unfit("is empty; give another one")
    demuxer, other = detect(stored.at(0, BLOCK))
    if demuxer is None:
        raise Unfit(f"is {other}; {READ} are read, so convert it to MP4")
    library = importlib.util.find_spec(LIBRARY)
    if library is None:
        raise EngineError(MISSING)
    end = time.monotonic() + limits.seconds
    if not _turns.acquire(timeout=limits.seconds):
        raise Unfit(f"waited {limits.seconds:g} seconds for others to be read; ask again later")
    try:
        with _file_of(stored) as file:
            task = Task(file, demuxer, limits.processor_seconds, limits.memory, limits.pixels, MOST)
            modules = (str(engine.__file__), str(PIL.__file__), str(library.origin))
            process = apart.start(PROGRAM, [json.dumps(asdict(task))], modules, (file,))
            return _Reader(process, limits, end).read(choose)
    finally:
        _turns.release()


class _Reader:
    """One process that reads a clip."""

    def __init__(self, process: "subprocess.Popen[bytes]", limits: ClipLimits, end: float) -> None:
        """end: by `time.monotonic()`, when it is given up."""
        self._process, self._limits, self._end = process, limits, end
        self._requests, self._replies = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)

    def read(self, choose: Choose) -> Clip:
        """Raises Unfit, and what `choose` raises."""
        watch = threading.Timer(max(0.0, self._end - time.monotonic()), self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            with self._ends_explained():
                facts = self._facts()
            indices = _checked(choose(facts), facts, self._limits)
            with self._ends_explained():
                found = self._frames(sorted(set(indices)), facts)
        finally:
            watch.cancel()
            apart.stop(self._process)
        pictures, seconds = zip(*(found[index] for index in indices), strict=True)
        return Clip(pictures, seconds, indices, facts)

    def _facts(self) -> ClipFacts:
        reply = self._reply()
        frames, width, height = (int(reply[name]) for name in ("frames", "width", "height"))
        check_size(width, height, self._limits.pixels)
        return ClipFacts(frames, float(reply["rate"]), float(reply["seconds"]), width, height)

    def _frames(self, indices: Sequence[int], facts: ClipFacts) -> dict[int, tuple[Image.Image, float]]:
        self._requests.write(json.dumps(indices).encode() + b"\n")
        self._requests.flush()
        found = {}
        for index in indices:
            seconds = float(self._reply()["seconds"])
            found[index] = apart.receive_pixels(self._replies, facts.width, facts.height), seconds
        return found

    def _reply(self) -> dict[str, Any]:
        """Raises Unfit, and whatever comes of a process that has ended or makes no sense."""
        line = self._replies.readline(LONGEST_REPLY)
        if not line:
            raise EOFError
        reply = json.loads(line)
        if "refused" in reply:
            raise Unfit(reply["refused"])
        return cast(dict[str, Any], reply)

    @contextmanager
    def _ends_explained(self) -> Iterator[None]:
        """Raises Unfit where the process ends, or makes no sense."""
        try:
            yield
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            raise Unfit(self._why_it_ended()) from None

    def _why_it_ended(self) -> str:
        """Why the process ended, as the sentence that the clip's name begins."""
        status = apart.status_of(self._process)
        if status == -signal.SIGXCPU:
            return f"takes more than {self._limits.processor_seconds} seconds of processor time to read; {CHEAPER}"
        if time.monotonic() >= self._end:
            return f"takes more than {self._limits.seconds:g} seconds to read; {CHEAPER}"
        if status == -signal.SIGKILL:
            return f"takes more memory to read than there is; {CHEAPER}"
        return "cannot be decoded (its decoder crashed); it is damaged"


def _checked(chosen: Sequence[int], facts: ClipFacts, limits: ClipLimits) -> tuple[int, ...]:
    """Raises RequestError for frames that are not there, Unfit for too many."""
    indices = tuple(chosen)
    if not indices or list(indices) != sorted(indices) or indices[0] < 0 or indices[-1] >= facts.frames:
        raise RequestError(
            f"of a clip of {facts.frames} frames, {short(str(list(indices)))} cannot be chosen; give ascending indices"
        )
    count = len(set(indices))
    if count * facts.width * facts.height > limits.chosen_pixels:
        raise Unfit(
            f"has {facts.width} x {facts.height} pixels, and {count} frames of them are more than the "
            f"{limits.chosen_pixels:,} that can be held; choose fewer frames, or scale it down"
        )
    return indices


@contextmanager
def _file_of(stored: Stored) -> Iterator[int]:
    """The number of an open file with these bytes, which another process may read and move in."""
    if not isinstance(stored.place, bytes):
        yield stored.place.fileno()
        return
    with os.fdopen(os.memfd_create("clip"), "wb") as file:
        file.write(stored.place)
        file.flush()
        yield file.fileno()
