"""A clip of an hour takes the memory of the frames that are chosen, and seeks to them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.video.reader import read_clip
from tests import clips
from tools.clips import repeated

FRAMES, REPEATED, RATE, SIZE = 50, 1800, 25, (160, 96)
MEASURE = """import resource, sys
from pathlib import Path
from engine.video.reader import read_clip
read_clip(Path(sys.argv[1]), lambda facts: [0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_clip(Path(sys.argv[1]), lambda facts: range(0, facts.frames, facts.frames // 64))
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hour") / "hour.mp4"
    path.write_bytes(repeated(clips.clip(frames=FRAMES, rate=RATE, size=SIZE), REPEATED))
    return path


def test_frames_of_an_hour_are_the_right_ones(hour: Path) -> None:
    chosen = [0, 11_249, 44_444, 44_445, 89_999]
    clip = read_clip(hour, lambda facts: chosen)
    assert clip.facts.frames == FRAMES * REPEATED and clip.facts.seconds == 3600 and clip.facts.rate == RATE
    assert clip.seconds == pytest.approx([index / RATE for index in chosen])
    frames = clips.decoded(clips.clip(frames=FRAMES, rate=RATE, size=SIZE))
    for index, picture in zip(chosen, clip.pictures, strict=True):
        np.testing.assert_array_equal(picture, frames[index % FRAMES])


def test_memory_is_that_of_the_chosen_frames(hour: Path) -> None:
    """Decoded, the clip has 4 GB. A process that reads has 64 MB by itself."""
    measured = subprocess.run([sys.executable, "-c", MEASURE, str(hour)], capture_output=True, text=True, check=True)
    own, reader = map(int, measured.stdout.split())  # KiB
    chosen = 65 * 3 * SIZE[0] * SIZE[1] / 1024
    assert own < chosen + 16_000
    assert reader < 120_000
