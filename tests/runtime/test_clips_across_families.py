"""Clips from files, of pairs across families: each model is shown the frames of its own rule, and importance is carried
over in space and time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig, VideoConfig
from engine.errors import EngineError, ImageError, RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.clips import ClipFrames
from engine.runtime.grid import Grid
from engine.runtime.guidance import resample, select
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.video.clip import Clip
from engine.video.facts import Choose
from engine.video.limits import ClipLimits
from engine.video.reader import read_clip
from tests import saved_internvl, saved_llava_onevision, saved_qwen2_vl
from tests.eager_clips import noise
from tests.whole import QUESTION

av = pytest.importorskip("av")
RATE, LENGTH = 10, 30
PAIRS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "internvl guides qwen2_vl": (
        lambda directory: saved_internvl.save(directory, "qwen3"),
        lambda directory: saved_qwen2_vl.save(directory, seed=1),
    ),
    "qwen2_5_vl guides llava_onevision": (
        lambda directory: saved_qwen2_vl.save(directory, has_windows=True),
        lambda directory: saved_llava_onevision.save(directory, seed=1),
    ),
}
GUIDED = {"guidance": GuidanceConfig(retention_ratio=0.3, prune_layer=2), "exit": ExitConfig(exit_threshold=2.0)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of noise, every frame another."""
    path = tmp_path_factory.mktemp("clip") / "noise.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(LENGTH):
            container.mux(stream.encode(av.VideoFrame.from_image(noise(64, 48, number))))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module", params=PAIRS)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    small, large = (save(tmp_path_factory.mktemp("saved")) for save in PAIRS[request.param])
    out = tmp_path_factory.mktemp("built") / "engine"
    build_pair(BuildConfig(small.directory, large.directory, out, max_tokens=1024, max_batch=2, prune_layers=(2,)))
    return SglPipeline.load(out, threads=1)


def ask(pipeline: SglPipeline, clip: Any, video: VideoConfig, tokens: int = 4, **settings: Any) -> Answer:
    sampling = SamplingConfig(max_new_tokens=tokens)
    question = Question((), QUESTION, **(GUIDED | settings), sampling=sampling, videos=(clip,), video=video)
    return pipeline.answer_batch([question])[0]


def carried(values: np.ndarray, known: Grid, wanted: Grid) -> np.ndarray:
    """[V] -> [W]: what falls into each place of the other model, pair by pair."""

    def places(grid: Grid) -> np.ndarray:
        return np.concatenate([grid.boxes[:, :2], grid.spans()[:, :1], grid.boxes[:, 2:], grid.spans()[:, 1:]], axis=1)

    total, source = np.zeros(len(wanted.boxes)), places(known).astype(np.float64)
    for token, target in enumerate(places(wanted).astype(np.float64)):
        sides = np.minimum(target[3:], source[:, 3:]) - np.maximum(target[:3], source[:, :3])
        part = np.prod(np.maximum(sides, 0), axis=1) / np.prod(source[:, 3:] - source[:, :3], axis=1)
        total[token] = (part * values).sum()
    return total


@pytest.mark.parametrize("video", [VideoConfig(), VideoConfig(frames=6), VideoConfig(fps=1)], ids=str)
def test_importance_is_carried_over_in_space_and_time(pipeline: SglPipeline, clip: Path, video: VideoConfig) -> None:
    answer = ask(pipeline, clip, video)
    known, wanted = (
        model.look([], QUESTION, 4, videos=[clip], video=video) for model in (pipeline.small, pipeline.large)
    )
    assert answer.clips == wanted.media.clips
    if video == VideoConfig():
        assert known.media.clips != wanted.media.clips, "their rules differ"
    alone = ask(pipeline, clip, video, guidance=GuidanceConfig(enabled=False), exit=ExitConfig(exit_threshold=-1.0))
    assert alone.answered_by is AnsweredBy.SMALL and alone.importance is not None
    expected = carried(alone.importance, known.grid, wanted.grid)
    assert answer.importance is not None and answer.kept is not None
    assert_allclose(answer.importance, expected, rtol=1e-3, atol=1e-6 * expected.max())
    assert_allclose(answer.importance.sum(), alone.importance.sum(), rtol=1e-4)
    assert answer.kept.tolist() == select(answer.importance, int(len(expected) * 0.3)).tolist()


def test_a_moment_that_was_looked_at_is_kept(pipeline: SglPipeline, clip: Path) -> None:
    """All importance in the last frame of the guide: what is kept lies in its time."""
    known, wanted = (model.look([], QUESTION, 4, videos=[clip]).grid for model in (pipeline.small, pipeline.large))
    spans = known.spans()
    last = (spans[:, 1] == spans[:, 1].max()).astype(np.float32)
    found = resample(last, known, wanted)
    inside = wanted.spans()[:, 1] > spans[last > 0, 0].min()
    assert (found[inside] > 0).all() and not found[~inside].any()


def test_a_clip_may_come_as_bytes_and_as_pictures(pipeline: SglPipeline, clip: Path) -> None:
    video = VideoConfig(frames=4)
    one, other = (ask(pipeline, source, video) for source in (clip, clip.read_bytes()))
    assert (one.token_ids, one.probabilities) == (other.token_ids, other.probabilities)
    with av.open(str(clip)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    chosen = one.clips[0]
    given = ClipFrames(tuple(frames[index] for index in chosen.indices), chosen.seconds)
    again = pipeline.large.look([], QUESTION, 4, videos=[given])
    read = pipeline.large.look([], QUESTION, 4, videos=[clip], video=video)
    np.testing.assert_array_equal(again.pieces[0].pixels, read.pieces[0].pixels)
    np.testing.assert_array_equal(again.encoded.ids, read.encoded.ids)


def test_too_many_frames_are_refused_before_they_are_read(
    pipeline: SglPipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.video.reader._Reader._frames", lambda *_: pytest.fail("they were read"))
    with pytest.raises(RequestError, match=r"30 frames of a clip alone have .* tokens, .* fewer pictures or frames"):
        ask(pipeline, clip, VideoConfig(frames=30), tokens=1000)


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 300), (20, 20), (9999, 300)])
def test_a_clip_is_read_within_the_time_of_its_question(
    pipeline: SglPipeline, clip: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None, seconds: float
) -> None:
    found = []

    def read(source: Path, choose: Choose, limits: ClipLimits) -> Clip:
        found.append(limits.seconds)
        return read_clip(source, choose, limits)

    monkeypatch.setattr("engine.runtime.clips.read_clip", read)
    ask(pipeline, clip, VideoConfig(frames=2), timeout=timeout)
    assert set(found) == {seconds}


@pytest.mark.parametrize(
    ("clip_", "kind", "sentence"),
    [
        (b"", ImageError, "is empty"),
        (b"GIF89", ImageError, "clip"),
        (Path("/nowhere/clip.mp4"), ImageError, "does not exist"),
        (ClipFrames((noise(8, 8, 0), noise(9, 8, 0))), RequestError, "of several sizes"),
        (7, RequestError, "a clip cannot be a int"),
    ],
    ids=["empty", "broken", "missing", "several sizes", "a number"],
)
def test_what_is_no_clip_ends_in_a_sentence(
    pipeline: SglPipeline, clip_: Any, kind: type[EngineError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        ask(pipeline, clip_, VideoConfig())


@pytest.mark.parametrize("times", [(1.0, 0.0), (0.0,), (0.0, 1.0, 2.0)])
def test_times_of_pictures_are_one_each_and_ascend(times: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="not one for each picture, ascending"):
        ClipFrames((noise(8, 8, 0), noise(8, 8, 1)), times)
    with pytest.raises(RequestError, match="holds none"):
        ClipFrames(())
