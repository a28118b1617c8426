"""Which frames each family's published code looks at.

Each rule is a function of a clip's facts and a question's options; it gives indices, ascending, at least one.
"""

import numpy as np

from engine.config import VideoConfig
from engine.video.facts import ClipFacts

INTERNVL2_FRAMES = 8
LLAVA_FRAMES = 32
QWEN_FPS = 2.0
QWEN_LEAST, QWEN_MOST = 4, 768
QWEN_PAIR = 2
"""Frames that Qwen's vision encoder takes at once."""


def internvl2(facts: ClipFacts, options: VideoConfig) -> tuple[int, ...]:
    """The middle of each of n equal parts: `get_index` of OpenGVLab/InternVL, `eval/mvbench/evaluate_mvbench.py`.

    n: 8 (16 there, 8 on the model cards). Frames per second are not published: n is as many as they are in the clip.
    """
    count = _count(facts, options, INTERNVL2_FRAMES)
    part = float(facts.frames - 1) / count
    return tuple(int(part / 2 + np.round(part * index)) for index in range(count))


def qwen2_vl(facts: ClipFacts, options: VideoConfig) -> tuple[int, ...]:
    """An even number, from the first to the last: `smart_nframes` and `_read_video_decord` of qwen_vl_utils 0.0.14.

    2 frames per second, 4 to 768, no more than there are. A clip of one frame, which that refuses, gives that one.
    """
    total = facts.frames
    if total < QWEN_PAIR:
        return (0,) * total
    if options.frames is not None:
        wanted = round(options.frames / QWEN_PAIR) * QWEN_PAIR
        count = min(wanted, _capped(total, options.max_frames))
    else:
        most = _even(min(QWEN_MOST, total) if options.max_frames is None else options.max_frames)
        sampled = total / facts.rate * (options.fps or QWEN_FPS)
        count = int(min(min(max(sampled, QWEN_LEAST), most), total))
    return _rounded_line(total - 1, max(QWEN_PAIR, _even(count)))


def llava_onevision(facts: ClipFacts, options: VideoConfig) -> tuple[int, ...]:
    """From the first to the last: `np.linspace(0, total - 1, n, dtype=int)` of the tutorial of LLaVA-VL/LLaVA-NeXT, 32.

    With frames per second, as `process_video_with_decord` of its `llava/utils.py`: every so many, or where that is
    more than `max_frames` (32), those of the line.
    """
    if options.fps is not None:
        every = range(0, facts.frames, max(1, round(facts.rate / options.fps)))
        most = options.max_frames or LLAVA_FRAMES
        return tuple(every) if len(every) <= most else _line(facts.frames - 1, most)
    return _line(facts.frames - 1, _count(facts, options, LLAVA_FRAMES))


def _count(facts: ClipFacts, options: VideoConfig, usual: int) -> int:
    if options.frames is not None:
        wanted = options.frames
    else:
        wanted = usual if options.fps is None else max(1, int(facts.seconds * options.fps))
    return _capped(wanted, options.max_frames)


def _capped(count: int, most: int | None) -> int:
    return count if most is None else min(count, most)


def _even(count: int) -> int:
    return count // QWEN_PAIR * QWEN_PAIR


def _line(last: int, count: int) -> tuple[int, ...]:
    return tuple(map(int, np.linspace(0, last, count, dtype=int)))


def _rounded_line(last: int, count: int) -> tuple[int, ...]:
    """`torch.linspace(0, last, count).round()`: of 32 bits, and from both ends, which decides where halves go.

    Products are not rounded before they are added up, as on every processor with such an instruction.
    """
    step = np.float64(np.float32(last) / np.float32(count - 1))
    places = np.arange(count)
    line = np.where(places < count // 2, step * places, last - step * (count - 1 - places))
    return tuple(map(int, np.rint(line.astype(np.float32))))
