"""Which frames are chosen, against the text of the published code."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.config import VideoConfig
from engine.errors import RequestError
from engine.video import choice
from engine.video.facts import ClipFacts

RATES = (30.0, 30000 / 1001, 25.0, 24000 / 1001, 24.0, 60.0, 15.0, 12.5, 10.0, 8.0, 1.0, 0.5)


def clip(frames: int, rate: float) -> ClipFacts:
    return ClipFacts(frames, rate, frames / rate, 640, 360)


def triples(count: int = 500) -> list[tuple[int, float, int]]:
    """Frames of a clip, its rate, frames that are asked for; of less than 100,000 seconds, at which InternVL2 cuts."""
    draw = random.Random(16)
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 300, 1800, 40_000]
    return [
        (
            lengths[place] if place < len(lengths) else round(math.exp(draw.uniform(0, math.log(40_000)))),
            draw.choice(RATES),
            draw.choice((1, 2, 3, 4, 8, 16, 32, 64, draw.randint(1, 900))),
        )
        for place in range(count)
    ]


def published_internvl(total: int, rate: float, num_segments: int) -> list[int]:
    """OpenGVLab/InternVL, `get_index` of `eval/mvbench/evaluate_mvbench.py` and of the model cards; no bound given."""
    start, end, first_idx, max_frame = -100000, 100000, 0, total - 1
    start_idx = max(first_idx, round(start * rate))
    end_idx = min(round(end * rate), max_frame)
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]


def published_qwen(total: int, rate: float, **ele: float) -> list[int]:
    """qwen_vl_utils 0.0.14, `smart_nframes` and `_read_video_decord` of `vision_process.py`."""
    factor = 2
    if "nframes" in ele:
        nframes = round(ele["nframes"] / factor) * factor
    else:
        fps = ele.get("fps", 2.0)
        min_frames = math.ceil(ele.get("min_frames", 4) / factor) * factor
        max_frames = math.floor(ele.get("max_frames", min(768, total)) / factor) * factor
        nframes = total / rate * fps
        nframes = min(min(max(nframes, min_frames), max_frames), total)
        nframes = math.floor(nframes / factor) * factor
    if not (factor <= nframes and nframes <= total):
        raise ValueError(f"nframes should in interval [{factor}, {total}], but got {nframes}.")
    return torch.linspace(0, total - 1, int(nframes)).round().long().tolist()


def published_llava(total: int, frames: int) -> list[int]:
    """LLaVA-VL/LLaVA-NeXT, `load_video` of `docs/LLaVA_OneVision_Tutorials.ipynb`."""
    return np.linspace(0, total - 1, frames, dtype=int).tolist()


def published_llava_fps(total: int, rate: float, video_fps: float, frames_upbound: int) -> list[int]:
    """LLaVA-VL/LLaVA-NeXT, `process_video_with_decord` of `llava/utils.py`."""
    avg_fps = round(rate / video_fps)
    frame_idx = list(range(0, total, avg_fps))
    if frames_upbound > 0 and len(frame_idx) > frames_upbound:
        frame_idx = np.linspace(0, total - 1, frames_upbound, dtype=int).tolist()
    return frame_idx


def test_internvl2_looks_at_the_frames_of_the_published_rule() -> None:
    for total, rate, count in triples():
        assert list(choice.internvl2(clip(total, rate), VideoConfig(count))) == published_internvl(total, rate, count)
    assert list(choice.internvl2(clip(300, 30.0), VideoConfig())) == [18, 55, 93, 130, 168, 205, 242, 280]


def test_qwen_looks_at_the_frames_of_the_published_rule() -> None:
    compared = 0
    for total, rate, count in triples():
        cases = [({}, VideoConfig()), ({"fps": 1.5}, VideoConfig(fps=1.5))]
        cases += [({"fps": 4.0, "max_frames": count}, VideoConfig(fps=4.0, max_frames=count))]
        cases += [({"nframes": count}, VideoConfig(count))]
        for ele, options in cases:
            try:
                expected = published_qwen(total, rate, **ele)
            except ValueError:
                continue
            assert list(choice.qwen2_vl(clip(total, rate), options)) == expected, (total, rate, ele)
            compared += 1
    assert compared > 1200


def test_llava_looks_at_the_frames_of_the_published_rule() -> None:
    for total, rate, count in triples():
        facts = clip(total, rate)
        assert list(choice.llava_onevision(facts, VideoConfig(count))) == published_llava(total, count)
        if rate >= 1:
            options = VideoConfig(fps=1.0, max_frames=count)
            assert list(choice.llava_onevision(facts, options)) == published_llava_fps(total, rate, 1.0, count)
    assert len(choice.llava_onevision(clip(300, 30.0), VideoConfig())) == 32


RULES: tuple[Callable[[ClipFacts, VideoConfig], tuple[int, ...]], ...] = (
    choice.internvl2,
    choice.qwen2_vl,
    choice.llava_onevision,
)


@pytest.mark.parametrize("rule", RULES)
def test_whatever_is_asked_for_is_in_the_clip(rule: Callable[[ClipFacts, VideoConfig], tuple[int, ...]]) -> None:
    for total, rate, count in triples(150):
        for options in (
            VideoConfig(),
            VideoConfig(count),
            VideoConfig(fps=0.1),
            VideoConfig(fps=1000, max_frames=40),
            VideoConfig(count, max_frames=3),
            VideoConfig(max_frames=1),
        ):
            chosen = rule(clip(total, rate), options)
            assert len(chosen) >= 1 and list(chosen) == sorted(chosen)
            assert chosen[0] >= 0 and chosen[-1] < total
            if options.max_frames is not None:
                assert len(chosen) <= max(options.max_frames, 2 if rule is choice.qwen2_vl else 1)


def test_qwen_takes_pairs_but_of_a_single_frame() -> None:
    assert choice.qwen2_vl(clip(1, 30.0), VideoConfig()) == (0,)
    for total, rate, count in triples(100):
        assert total == 1 or len(choice.qwen2_vl(clip(total, rate), VideoConfig(count))) % 2 == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 0}, "frames 0 is outside 1"),
        ({"frames": True}, "frames cannot be a bool; give a whole number"),
        ({"max_frames": 2.5}, "max_frames cannot be a float; give a whole number"),
        ({"fps": 0}, r"fps 0.0 is outside \(0, 1000"),
        ({"fps": math.nan}, "fps nan is outside"),
        ({"fps": math.inf}, "fps inf is outside"),
        ({"fps": "2"}, "fps cannot be a str; give a number"),
        ({"frames": 8, "fps": 2.0}, "frames and fps contradict each other; give one of them"),
    ],
)
def test_options_that_make_no_sense_end_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        VideoConfig(**options)  # type: ignore[arg-type]
