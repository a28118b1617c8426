"""A process that decodes pictures whose cost no header tells: with little memory, and little time for each.

Run by `decoder.py`. Its arguments are seconds of processor time for each picture, and bytes for itself. A request on
standard input is a line of JSON and the bytes of a file; the reply on standard output is a line of JSON, and the pixels
[H,W,3] or nothing. It ends when its input does, or when a picture takes too much.
"""

import json
import resource
import sys
import warnings
from typing import Any, BinaryIO

from PIL import AvifImagePlugin, Image

from engine.config import PictureConfig
from engine.runtime.images import apart
from engine.runtime.images.decode import damage, decode
from engine.runtime.images.formats import Format
from engine.runtime.images.limits import Unfit
from engine.runtime.images.stored import Stored


def main(seconds: int, memory: int) -> None:
    """seconds: of processor time for each picture. memory: bytes of the whole process."""
    replies = apart.take_standard_output()
    apart.limit(resource.RLIMIT_CORE, 0)
    apart.limit(resource.RLIMIT_FSIZE, 0)
    apart.limit(resource.RLIMIT_AS, memory)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # what is too large is refused in one place
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread takes addresses, and their time counts together
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        apart.limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
        if not _answer(request, sys.stdin.buffer.read(request["bytes"]), replies, memory):
            return


def _answer(request: dict[str, Any], data: bytes, replies: BinaryIO, memory: int) -> bool:
    """Whether this process is good for more."""
    background = request["background"]
    picture = PictureConfig(request["auto_orient"], None if background is None else tuple(background))
    try:
        image = decode(Stored.of(data), Format(request["format"]), picture)
    except Unfit as unfit:
        _send(replies, {"refused": str(unfit), "ends": False})
        return True
    except MemoryError:
        reason = f"needs more than {memory:,} bytes to be decoded; scale it down"
        _send(replies, {"refused": reason, "ends": True})
        return False
    except Exception as error:  # a decoder may raise anything for what is damaged
        _send(replies, {"refused": damage(error), "ends": False})
        return True
    del data
    _send(replies, {"size": image.size})
    apart.send_pixels(replies, image)
    return True


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
