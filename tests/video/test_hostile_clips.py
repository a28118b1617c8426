"""What is broken, no clip, or made to do harm, ends in one sentence, soon, and opens nothing else."""

import threading
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from engine.errors import EngineError, ImageError
from engine.video import reader
from engine.video.facts import ClipFacts
from engine.video.limits import ClipLimits
from engine.video.reader import read_clip
from tests import clips
from tests.pictures import png_of

READ = "MP4, MOV, WebM, Matroska, AVI, MPEG, FLV, Ogg and GIF are read, so convert it to MP4"
DAMAGED = "it is damaged or cut off"
INVALID = f"cannot be decoded (Invalid data found when processing input); {DAMAGED}"
CRASHED = "cannot be decoded (its decoder crashed); it is damaged"
CHEAPER = "choose fewer frames, cut it, or scale it down"


def everything(facts: ClipFacts) -> Sequence[int]:
    return range(facts.frames)


def cut(container: str, share: float = 0.5) -> bytes:
    data = clips.clip(container=container)
    return data[: int(len(data) * share)]


BROKEN = {
    "nothing": (lambda: b"", "is empty; give another one"),
    "noise": (lambda: bytes(range(256)) * 9, f"is not a clip; {READ}"),
    "a picture": (lambda: png_of(9, 9), f"is a PNG picture; {READ}"),
    "a HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(50), f"is a picture; {READ}"),
    "a WebP": (lambda: b"RIFF\0\0\0\0WEBPVP8 " + bytes(50), f"is a WebP picture; {READ}"),
    "sound": (lambda: clips.sound(), "has no moving pictures, only sound or text; give a clip"),
    "WAV": (lambda: b"RIFF\0\0\0\0WAVEfmt " + bytes(50), f"is sound; {READ}"),
    "HLS": (lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", f"is a playlist; {READ}"),
    "HLS with a mark": (lambda: b"\xef\xbb\xbf \n#EXTM3U\n", f"is a playlist; {READ}"),
    "concat": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", f"is a list of files; {READ}"),
    "DASH": (lambda: b'<?xml version="1.0"?><MPD/>', f"is XML; {READ}"),
    "SDP": (lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", f"is a stream's description; {READ}"),
    "only a brand": (
        lambda: clips.clip()[:32],
        f"cannot be decoded (Invalid data found when processing input); {DAMAGED}",
    ),
    "half an MP4": (lambda: cut("mp4"), INVALID),
    "the head of a WebM": (lambda: cut("matroska", 0.05), "cannot be decoded ("),
    "no frames": (lambda: clips.clip(frames=0, container="matroska"), ""),
    "zeros for frames": (lambda: zeroed(clips.clip()), f"cannot be decoded (none of its frames can be); {DAMAGED}"),
}


def zeroed(data: bytes) -> bytes:
    """An MP4 whose index is whole, and whose frames are nothing."""
    place = data.index(b"mdat")
    length = int.from_bytes(data[place - 4 : place])
    return data[: place + 4] + bytes(length - 8) + data[place + length - 4 :]


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_clip_ends_in_a_sentence(name: str) -> None:
    make, sentence = BROKEN[name]
    with pytest.raises(ImageError) as raised:
        read_clip(make(), everything)
    assert str(raised.value).startswith(f"the clip {sentence}")
    assert "\n" not in str(raised.value)


def test_a_clip_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.mp4 does not exist"):
        read_clip(tmp_path / "missing.mp4", everything)
    with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
        read_clip(tmp_path, everything)


def test_of_what_is_cut_off_or_damaged_the_rest_is_read() -> None:
    whole = clips.decoded(clips.clip(container="matroska"))
    half = read_clip(cut("matroska"), everything)
    assert 5 < half.facts.frames < 30
    for picture, frame in zip(half.pictures, whole, strict=False):
        np.testing.assert_array_equal(picture, frame)
    data = bytearray(clips.clip(container="matroska"))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    damaged = read_clip(bytes(data), everything)
    np.testing.assert_array_equal(damaged.pictures[0], whole[0])
    assert len(damaged.pictures) == damaged.facts.frames < 30


def test_noise_in_clips_ends_in_frames_or_a_sentence() -> None:
    """Whatever bytes are changed: of some headers, of some frames, of both."""
    rng = np.random.default_rng(16)
    outcomes = set()
    for container in ("mp4", "matroska", "avi", "mpegts"):
        data = np.frombuffer(clips.clip("mpeg4" if container == "avi" else "libx264", container), np.uint8)
        for share in (0.0005, 0.01):
            for _ in range(2):
                changed = data.copy()
                places = rng.integers(16, len(data), max(1, int(share * len(data))))
                changed[places] = rng.integers(0, 256, len(places))
                outcomes.add(outcome(changed.tobytes()))
    assert outcomes == {"frames", "a sentence"}


def outcome(data: bytes) -> str:
    """Which of the two that there may be."""
    try:
        clip = read_clip(data, lambda facts: [0, facts.frames // 2, facts.frames - 1])
    except ImageError as error:
        return "a sentence" if str(error).startswith("the clip ") else str(error)
    return "frames" if len({picture.size for picture in clip.pictures}) == 1 else "frames of several sizes"


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
}


@pytest.mark.parametrize("demuxer", PLAYLISTS)
def test_nothing_that_a_clip_names_is_opened(demuxer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a playlist were taken for a clip: its process can open no file."""
    (tmp_path / "secret.ts").write_bytes(clips.clip("mpeg2video", "mpegts"))
    playlist = tmp_path / f"list.{demuxer}"
    playlist.write_text(PLAYLISTS[demuxer].format(tmp_path / "secret.ts"))
    with av.open(str(playlist), format=demuxer, options={"safe": "0"} if demuxer == "concat" else {}) as opened:
        assert len(list(opened.decode(video=0))) == 30, "FFmpeg itself follows it"
    monkeypatch.setattr(reader, "detect", lambda data: (demuxer, ""))
    with pytest.raises(ImageError, match=r"^the clip (cannot be decoded|has no moving pictures)"):
        read_clip(playlist.read_bytes(), everything)


def test_a_codec_that_is_not_read_is_named() -> None:
    data = clips.clip("wmv2", "avi")
    with pytest.raises(ImageError, match=r"^the clip is coded as wmv2, which is not read; convert it to H\.264$"):
        read_clip(data, everything)


def test_a_codec_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^the clip is coded as something unknown, which is not read"):
        read_clip(clips.clip().replace(b"avc1", b"zzzz"), everything)


def test_what_a_clip_says_of_itself_may_be_in_any_letters() -> None:
    data = clips.clip(container="matroska")
    assert data.count(b"Lavf")
    assert read_clip(data.replace(b"Lavf", b"\xd0\xff\x8b\xc3"), everything).facts.frames == 30


def test_pixels_and_bytes_are_limited(tmp_path: Path) -> None:
    data = clips.clip(frames=12)
    with pytest.raises(ImageError, match=r"has 96 x 64 pixels, more than can be decoded safely"):
        read_clip(data, everything, ClipLimits(pixels=96 * 64 - 1))
    with pytest.raises(ImageError, match=r"has 96 x 64 pixels, and 12 frames of them are more than the 70,000"):
        read_clip(data, everything, ClipLimits(chosen_pixels=70_000))
    clip = read_clip(data, lambda facts: [4] * 100, ClipLimits(chosen_pixels=96 * 64))
    assert len(clip.pictures) == 100, "one that is chosen again takes nothing more"
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(ClipLimits.bytes + 1)
    with pytest.raises(ImageError, match=r"large\.mp4 has more than 4,000,000,000 bytes; cut it or scale it down"):
        read_clip(path, everything)


def test_memory_is_limited() -> None:
    data = clips.clip(frames=3)
    with pytest.raises(ImageError, match=r"^the clip needs more than 50,000,000 bytes to be decoded; scale it down$"):
        read_clip(data, everything, ClipLimits(memory=50_000_000))
    assert len(read_clip(data, everything, ClipLimits(memory=600_000_000)).pictures) == 3


ENDLESS = """import json, sys
from engine.video import reader_process
reader_process._read = lambda task, replies: [None for _ in iter(int, 1)]
reader_process.main(reader_process.Task(**json.loads(sys.argv[1])))"""


@pytest.mark.parametrize(
    ("program", "limits", "sentence"),
    [
        (ENDLESS, ClipLimits(processor_seconds=1), f"takes more than 1 seconds of processor time to read; {CHEAPER}"),
        ("import time; time.sleep(600)", ClipLimits(seconds=1), f"takes more than 1 seconds to read; {CHEAPER}"),
        ("import signal; signal.raise_signal(signal.SIGKILL)", ClipLimits(), "takes more memory to"),
        ("import signal; signal.raise_signal(signal.SIGSEGV)", ClipLimits(), CRASHED),
        ("print('nonsense')", ClipLimits(), CRASHED),
        ("print('[]')", ClipLimits(), CRASHED),
        ("print('{\"frames\": 9}')", ClipLimits(), CRASHED),
        (
            'print(\'{"frames": 1, "rate": 1, "seconds": 1, "width": 99999, "height": 99999}\')',
            ClipLimits(),
            "has 99999 x 99999 pixels",
        ),
        (
            'print(\'{"frames": 1, "rate": 1, "seconds": 1, "width": 9, "height": 9}\\n{"seconds": 0}\\n12345\')',
            ClipLimits(),
            CRASHED,
        ),
    ],
)
def test_a_process_that_ends_or_hangs_is_explained(
    program: str, limits: ClipLimits, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "package" / "module.py"
    (tmp_path / "stand_in_reader.py").write_text(program)
    started = reader.apart.start
    monkeypatch.setattr(reader, "PROGRAM", "stand_in_reader")
    monkeypatch.setattr(
        reader.apart,
        "start",
        lambda program, arguments, modules, files: started(program, arguments, [*modules, str(stand_in)], files),
    )
    with pytest.raises(ImageError) as raised:
        read_clip(clips.clip(), lambda facts: [0], limits)
    assert str(raised.value).startswith(f"the clip {sentence}")


def test_clips_may_be_read_from_many_threads() -> None:
    data, whole = clips.clip(), clips.decoded(clips.clip())
    failures: list[int] = []

    def read(index: int) -> None:
        clip = read_clip(data, lambda facts: [index])
        if not np.array_equal(clip.pictures[0], whole[index]):
            failures.append(index)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(0, 30, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_without_pyav_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LIBRARY", "no_such_library")
    with pytest.raises(EngineError, match=r"PyAV, which is not installed; pip install 'sgl-engine\[video\]'$"):
        read_clip(clips.clip(), everything)
