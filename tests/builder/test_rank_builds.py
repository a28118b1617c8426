"""Ranks built on their own, at once or one after another: who finishes last completes the engine."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.build.builder import build_pair
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.lock import locked
from engine.build.staging import BuildReport, Component, build_components
from engine.build.weights import WeightReader, parameters
from engine.config import BuildConfig
from engine.dims import Limits
from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.families import family_of
from engine.parallel import Shard
from engine.verification import verify
from tests.builder.test_staging import NAMES, assert_engine, component, components, forbid, make_manifest
from tools.make_random_pair import write_pair

RANKS = ("large/language/rank0", "large/language/rank1")
SHARED = tuple(name for name in NAMES if name != RANKS[1])
"""What rank 0 builds."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pair"


def build(out: Path, wanted: tuple[str, ...], made: list[Component] | None = None) -> BuildReport:
    return build_components(out, made or components(), make_manifest, wanted=wanted)


@pytest.mark.parametrize("order", [(SHARED, RANKS[1:]), (RANKS[1:], SHARED)])
def test_the_last_rank_completes_the_engine(out: Path, order: tuple[tuple[str, ...], ...]) -> None:
    first = build(out, order[0])
    assert (first.built, set(first.missing)) == (order[0], set(order[1]))
    assert not out.exists()
    last = build(out, order[1], [component(name) if name in order[1] else forbid(name) for name in NAMES])
    assert (last.built, last.missing) == (order[1], ())
    assert_engine(out)


def test_a_rank_that_is_there_is_not_built_again(out: Path) -> None:
    build(out, RANKS[1:])
    again = build(out, RANKS[1:], [forbid(name) for name in NAMES])
    assert (again.resumed, again.built, set(again.missing)) == (RANKS[1:], (), set(SHARED))
    whole = build_components(out, [forbid(n) if n == RANKS[1] else component(n) for n in NAMES], make_manifest)
    assert (whole.resumed, whole.missing) == (RANKS[1:], ())
    assert_engine(out)
    cached = build(out, RANKS[1:], [forbid(name) for name in NAMES])
    assert (cached.cached, cached.missing) == (RANKS[1:], ())


def test_ranks_are_built_at_the_same_time(out: Path) -> None:
    """Both are in the middle of their build at once; a build of everything is refused meanwhile, and so is a twin."""
    middle, done = threading.Barrier(3, timeout=60), threading.Event()
    reports: dict[str, BuildReport] = {}

    def wait(directory: Path) -> None:
        middle.wait()
        assert done.wait(60)

    def run(name: str, wanted: tuple[str, ...]) -> None:
        made = [component(part, build=wait if part == name else None) for part in NAMES]
        reports[name] = build(out, wanted, made)

    threads = [threading.Thread(target=run, args=args) for args in ((RANKS[0], SHARED), (RANKS[1], RANKS[1:]))]
    for thread in threads:
        thread.start()
    middle.wait()
    with pytest.raises(EngineError, match="another build is writing"):
        build_components(out, components(), make_manifest)
    with pytest.raises(EngineError, match="another build is writing"):
        build(out, RANKS[1:])
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(len(report.missing) > 0 for report in reports.values()) in ([False, False], [False, True])
    assert_engine(out)


def test_who_finishes_at_the_same_instant_is_waited_for(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is built, but another build has not yet let go."""
    build(out, SHARED)
    holding, waited_for = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(out, shared=True):
            holding.set()
            assert waited_for.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert holding.wait(60)
    monkeypatch.setattr(time, "sleep", lambda seconds: waited_for.set())
    assert build(out, RANKS[1:]).missing == ()
    other.join()
    assert waited_for.is_set()
    assert_engine(out)


def test_what_is_cached_is_not_missing_while_others_build(out: Path) -> None:
    build_components(out, components(), make_manifest)
    new = component(RANKS[0], "new")
    changed = [new if name == RANKS[0] else component(name) for name in NAMES]
    with locked(out, shared=True):
        assert build(out, RANKS[1:], changed).missing == (RANKS[0],)


def test_a_failed_rank_leaves_the_other(out: Path) -> None:
    def fail(directory: Path) -> None:
        raise EngineError("no")

    build(out, SHARED)
    with pytest.raises(EngineError, match="no"):
        build(out, RANKS[1:], [component(name, build=fail if name == RANKS[1] else None) for name in NAMES])
    assert not out.exists()
    assert build(out, RANKS[1:]).missing == ()
    assert_engine(out)


def test_a_rebuilt_rank_replaces_the_engine_when_all_are(out: Path) -> None:
    build_components(out, components(), make_manifest)
    build(out, RANKS[1:], components("new"))
    assert_engine_is(out, "")
    build(out, SHARED, components("new"))
    assert_engine(out, "new")


def assert_engine_is(out: Path, text: str) -> None:
    assert (out / "large/rank1/language.onnx").read_text() == f"{RANKS[1]} onnx {text}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BuildConfig]:
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory, seed=3)
    whole = BuildConfig(directory / "small", directory / "large", directory / "engine", max_tokens=64, world_size=4)
    return lambda **changes: replace(whole, **changes)


def test_ranks_by_themselves_make_the_same_engine(config: Callable[..., BuildConfig], tmp_path: Path) -> None:
    together, apart = config(out=tmp_path / "together"), config(out=tmp_path / "apart")
    build_pair(together)
    for rank in (2, 0, 3):
        report = build_pair(replace(apart, rank=rank))
        assert f"large/language/rank{rank}" in report.built
        assert "large/language/rank1" in report.missing
        assert (rank == 0) == ("small/vision" in report.built)
    assert build_pair(replace(apart, rank=1)).missing == ()
    manifest = read_manifest(together.out)
    verify(apart.out, read_manifest(apart.out), full=True)
    assert {n: (c.key, c.files) for n, c in read_manifest(apart.out).components.items()} == {
        n: (c.key, c.files) for n, c in manifest.components.items()
    }
    sizes = [manifest.components[f"large/language/rank{rank}"].total_bytes() for rank in range(4)]
    assert max(sizes) - min(sizes) < 0.01 * max(sizes)


def test_a_rank_reads_its_own_part_only(config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    build = config()
    family, published = family_of(build.large)
    model = family.read_config(build.large, published)
    checkpoint = Checkpoint(build.large)
    reader = WeightReader(checkpoint, family.language_sources(model, checkpoint.names()))
    counts: list[int] = []
    read = checkpoint.read

    def counting(name: str, rows: Any = None, columns: Any = None) -> np.ndarray:
        part = read(name, rows, columns)
        counts.append(part.size)
        return part

    monkeypatch.setattr(checkpoint, "read", counting)
    sizes = []
    for shard in (Shard(), Shard(3, 4)):
        counts.clear()
        limits = Limits(max_tokens=64, max_batch=1, max_tiles=1)
        for name, weight in parameters(language_graph(model.language, limits, shard=shard)):
            data = reader.read(name, weight)
            assert counts[-1] == data.size, name
        sizes.append(sum(counts))
    # norms are whole on every rank, and two ranks share a KV head
    assert sizes[1] < 0.27 * sizes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world_size": 3}, r"the large model .*: num_heads 8 does not divide by world_size 3; choose a --tp"),
        ({"world_size": 16}, r"the large model .*: num_heads 8 does not divide by world_size 16"),
    ],
)
def test_a_model_that_does_not_divide_is_refused(
    config: Callable[..., BuildConfig], tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        build_pair(config(out=tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())


def test_a_rank_outside_is_refused(config: Callable[..., BuildConfig]) -> None:
    with pytest.raises(EngineError, match=r"rank 4 is outside 0\.\.3; give a rank below --tp"):
        config(rank=4)
