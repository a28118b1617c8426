"""A process that reads one clip, with little memory and time, and opens nothing.

Run by `reader.py`, with a line of JSON as its argument: `Task`. Its first reply on standard output is a line of JSON,
the clip's facts; then it reads the indices of the chosen frames, and replies with a line of JSON and the pixels [H,W,3]
of each. What is refused ends in a line that says why.
"""

import json
import os
import resource
import sys
from dataclasses import asdict
from typing import Any, BinaryIO, NoReturn

import av.subtitles.codeccontext
import av.subtitles.stream

from engine.runtime.images import apart
from engine.runtime.images.limits import Unfit, check_size
from engine.runtime.words import short
from engine.video.container import Opened, open_clip
from engine.video.facts import ClipFacts
from engine.video.frames import Frames
from engine.video.task import Task
from engine.video.timeline import count
from engine.video.upright import to_picture, turn_of, turned

UNDECODED = "cannot be decoded ({}); it is damaged or cut off"
LEFT = 16_000_000
"""Bytes that are free where decoding did not want for memory."""


def main(task: Task) -> None:
    replies = apart.take_standard_output()
    _confine(task)
    try:
        _read(task, replies)
    except Unfit as unfit:
        _send(replies, {"refused": str(unfit)})
    except MemoryError:
        _send(replies, {"refused": f"needs more than {task.memory:,} bytes to be decoded; scale it down"})
    except Exception as error:  # FFmpeg may raise anything for what is damaged
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _send(replies, {"refused": UNDECODED.format(short(reason))})
    # What a damaged clip left behind is not put in order.
    os._exit(0)


def _confine(task: Task) -> None:
    apart.limit(resource.RLIMIT_CORE, 0)
    apart.limit(resource.RLIMIT_FSIZE, 0)
    apart.limit(resource.RLIMIT_AS, task.memory)
    apart.limit(resource.RLIMIT_CPU, task.seconds)
    # No file or socket that is not open yet ever will be; so PyAV's modules are imported before.
    free = os.dup(task.file)
    os.close(free)
    apart.limit(resource.RLIMIT_NOFILE, free)
    av.logging.set_level(None)


def _read(task: Task, replies: BinaryIO) -> None:
    """Raises Unfit, or whatever FFmpeg may raise."""
    file = os.fdopen(task.file, "rb", buffering=0)

    def reopen() -> Opened:
        return open_clip(file, task.demuxer, task.threads)

    opened = reopen()
    context = opened.stream.codec_context
    if context.width and context.height:  # those that the container tells
        check_size(context.width, context.height, task.pixels)
    timeline = count(opened)
    frames = Frames(opened, reopen, timeline)
    first = frames.at(0)
    if first is None:
        _undecoded("none of its frames can be")
    size, turn = (first.width, first.height), turn_of(first)
    check_size(*size, task.pixels)
    facts = ClipFacts(timeline.frames, timeline.rate(), timeline.span(), *turned(*size, turn))
    _send(replies, asdict(facts))
    indices = json.loads(sys.stdin.buffer.readline())
    frames.choose(indices)
    for index in indices:
        frame = frames.at(index)
        if frame is None:
            _undecoded(f"frame {index} cannot be")
        _send(replies, {"seconds": timeline.seconds(index)})
        apart.send_pixels(replies, to_picture(frame, *size, turn))


def _undecoded(what: str) -> NoReturn:
    """Raises Unfit; MemoryError where it may not be the clip's fault: FFmpeg does not always tell what it lacked."""
    bytearray(LEFT)
    raise Unfit(UNDECODED.format(what))


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
