"""The staged build: cache, resume, and that no error ever leaves half an engine directory."""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.build.staging import BuildReport, Component, build_components, component_key
from engine.config import GuidanceConfig
from engine.engine_directory import STAMP, read_manifest
from engine.errors import EngineError
from engine.manifest import FORMAT_VERSION, ComponentRecord, Manifest
from engine.verification import verify
from tests.manifests import example_manifest

NAMES = ("small/vision", "small/language/rank0", "large/language/rank0", "large/language/rank1", "large/tokenizer")


def write_files(directory: Path, name: str, text: str) -> None:
    """`small/language/rank0` writes `rank0/language.*`, as the real one does."""
    _, part, *rank = name.split("/")
    for suffix in ("onnx", "weights"):
        path = directory.joinpath(*rank, f"{part}.{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {suffix} {text}")


def component(name: str, text: str = "", build: Callable[[Path], None] | None = None) -> Component:
    def write(directory: Path, on_progress: Callable[[float], None]) -> None:
        on_progress(0.5)
        write_files(directory, name, text)
        if build:
            build(directory)

    return Component(name, component_key(name, text), write)


def components(text: str = "", names: Iterable[str] = NAMES) -> list[Component]:
    return [component(name, text) for name in names]


def make_manifest(records: dict[str, ComponentRecord]) -> Manifest:
    return replace(example_manifest(records), created=time.strftime("%Y-%m-%dT%H:%M:%S") + str(time.monotonic_ns()))


def forbid(name: str, text: str = "") -> Component:
    """What must be found in the cache: building it fails."""

    def fail(directory: Path, on_progress: Callable[[float], None]) -> None:
        raise AssertionError(f"{name} was built again")

    return replace(component(name, text), build=fail)


def tree(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Path -> inode, time, content of every file."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in files
    }


def assert_engine(out: Path, text: str = "", names: Collection[str] = NAMES) -> None:
    """Whole, verified from its bytes, of one build, alone in its parent, its files without a second link."""
    manifest = read_manifest(out)
    verify(out, manifest, components=names, full=True)
    assert set(manifest.components) == set(names)
    expected = {"manifest.json", STAMP}
    for name in names:
        for file in manifest.components[name].files:
            suffix = file.rpartition(".")[2]
            assert (out / file).read_text() == f"{name} {suffix} {text}"
            assert (out / file).stat().st_nlink == 1
            expected.add(file)
    assert set(tree(out)) == expected
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "pair"


def test_first_build(out: Path) -> None:
    progress: list[tuple[str, float]] = []
    report = build_components(
        out, components(), make_manifest, lambda name, fraction: progress.append((name, fraction))
    )
    assert_engine(out)
    assert (report.cached, report.resumed, report.built) == ((), (), NAMES)
    assert report.peak_bytes > 1 << 20
    assert progress == [(name, fraction) for name in NAMES for fraction in (0.5, 1.0)]
    assert (out / "large/rank1/language.weights").is_file()
    assert (out / "small/vision.onnx").is_file()


def test_full_cache_hit_touches_nothing(out: Path) -> None:
    build_components(out, components(), make_manifest)
    before = tree(out), out.stat().st_mtime_ns
    report = build_components(out, [forbid(name) for name in NAMES], make_manifest)
    assert (tree(out), out.stat().st_mtime_ns) == before
    assert (report.cached, report.built) == (NAMES, ())
    assert_engine(out)


def test_only_the_manifest_changes(out: Path) -> None:
    build_components(out, components(), make_manifest)
    before = tree(out)
    guidance = GuidanceConfig(retention_ratio=0.4)
    build_components(
        out, [forbid(name) for name in NAMES], lambda records: replace(make_manifest(records), guidance=guidance)
    )
    assert read_manifest(out).guidance == guidance
    assert {name for name, file in tree(out).items() if file != before[name]} == {"manifest.json"}


def test_changed_component_is_built_and_others_keep_their_files(out: Path) -> None:
    build_components(out, components(), make_manifest)
    before = tree(out)
    wanted = [forbid(name) for name in NAMES if name != "small/vision"] + [component("small/vision", "new")]
    report = build_components(out, wanted, make_manifest)
    assert report.built == ("small/vision",)
    assert len(report.cached) == 4
    changed = {name for name, file in tree(out).items() if file != before[name]}
    assert changed == {"manifest.json", STAMP, "small/vision.onnx", "small/vision.weights"}


def test_component_no_longer_wanted_disappears(out: Path) -> None:
    build_components(out, components(), make_manifest)
    fewer = [name for name in NAMES if not name.endswith("rank1")]
    report = build_components(out, [forbid(name) for name in fewer], make_manifest)
    assert report.cached == tuple(fewer)
    assert_engine(out, names=fewer)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("altered")])
def test_damaged_component_is_rebuilt_alone(out: Path, damage: Callable[[Path], object]) -> None:
    build_components(out, components(), make_manifest)
    damage(out / "large/tokenizer.onnx")
    report = build_components(out, [*map(forbid, NAMES[:-1]), component(NAMES[-1])], make_manifest)
    assert report.built == ("large/tokenizer",)
    assert_engine(out)


class Stop(Exception):
    pass


def fail(error: BaseException) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        raise error

    return build


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), SystemExit(), EngineError("no")])
@pytest.mark.parametrize("existing", [False, True])
def test_error_leaves_out_as_it_was_and_is_resumed(out: Path, error: BaseException, existing: bool) -> None:
    if existing:
        build_components(out, components("old"), make_manifest)
    before = tree(out)
    failing = [*components("new", NAMES[:2]), component(NAMES[2], "new", fail(error)), *components("new", NAMES[3:])]
    with pytest.raises(type(error)):
        build_components(out, failing, make_manifest)
    assert tree(out) == before
    assert out.exists() == existing
    report = build_components(out, components("new"), make_manifest)
    assert (report.resumed, report.built) == (NAMES[:2], NAMES[2:])
    assert_engine(out, "new")


def test_error_in_the_first_component_leaves_nothing(out: Path) -> None:
    with pytest.raises(Stop):
        build_components(out, [component(NAMES[0], build=fail(Stop()))], make_manifest)
    assert list(out.parent.iterdir()) == []


def test_error_while_making_the_manifest_keeps_the_components(out: Path) -> None:
    with pytest.raises(Stop):
        build_components(out, components(), lambda records: fail(Stop())(out))  # type: ignore[arg-type, return-value]
    assert not out.exists()
    assert build_components(out, [forbid(name) for name in NAMES], make_manifest).resumed == NAMES
    assert_engine(out)


def test_unfit_leftovers_are_built_again(out: Path) -> None:
    failing = [*components(names=NAMES[:4]), component(NAMES[4], build=fail(Stop()))]
    with pytest.raises(Stop):
        build_components(out, failing, make_manifest)
    partial = out.parent / ".pair.partial"
    (partial / "small.vision/small/vision.weights").write_text("altered")
    (partial / "small.language.rank0/record.json").write_text("{")
    (partial / "large.language.rank0/large/rank0/language.onnx").unlink()
    report = build_components(out, components(), make_manifest)
    assert report.resumed == ("large/language/rank1",)
    assert_engine(out)


def test_swap_that_fails_puts_the_old_engine_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_components(out, components("old"), make_manifest)
    before = tree(out)
    rename = Path.rename

    def refuse_engine(path: Path, target: Path) -> Path:
        if path.name == "engine":
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_engine)
    with pytest.raises(EngineError, match=r"cannot be built .*choose another --out"):
        build_components(out, components("new"), make_manifest)
    assert tree(out) == before
    monkeypatch.undo()
    assert build_components(out, components("new"), make_manifest).resumed == NAMES
    assert_engine(out, "new")


def test_file_system_without_hard_links(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    build_components(out, components(), make_manifest)
    assert_engine(out)


def test_full_disk(out: Path) -> None:
    def fill(directory: Path) -> None:
        Path("/dev/full").write_text("a real ENOSPC")

    with pytest.raises(EngineError, match=f"the disk of {out.parent} is full; free some space") as raised:
        build_components(out, [component(NAMES[0]), component(NAMES[1], build=fill)], make_manifest)
    assert "\n" not in str(raised.value)
    assert not out.exists()
    assert build_components(out, components(), make_manifest).resumed == NAMES[:1]
    assert_engine(out)


@pytest.mark.parametrize("content", ["notes", '{"name": "a web page"}'])
def test_foreign_directory_is_refused(out: Path, content: str) -> None:
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(content)
    before = tree(out)
    with pytest.raises(EngineError, match=f"{out} is not empty and not an engine directory"):
        build_components(out, [forbid(name) for name in NAMES], make_manifest)
    assert tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["pair"]


def test_file_in_the_place_of_out_is_refused(out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(EngineError, match=f"{out} is a file"):
        build_components(out, components(), make_manifest)
    with pytest.raises(EngineError, match="choose another --out"):
        build_components(out / "below", components(), make_manifest)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("place", ["/", "/proc/x/y", "x" * 250, "x" * 260])
def test_impossible_place_is_one_sentence(tmp_path: Path, place: str) -> None:
    with pytest.raises(EngineError, match="choose another --out") as raised:
        build_components(tmp_path / place, [component(NAMES[0])], make_manifest)
    assert str(raised.value).startswith(str(tmp_path / place))
    assert list(tmp_path.iterdir()) == []


def test_any_other_error_of_the_system_is_one_sentence(out: Path) -> None:
    error = OSError(errno.EIO, "Input/output error", "model.safetensors")
    with pytest.raises(EngineError, match=f"{out} cannot be built .*Input/output error: 'model.safetensors'"):
        build_components(out, [component(NAMES[0], build=fail(error))], make_manifest)


def test_engine_with_a_cut_off_manifest_is_replaced(out: Path) -> None:
    build_components(out, components("old"), make_manifest)
    os.truncate(out / "manifest.json", 100)
    assert build_components(out, components(), make_manifest).built == NAMES
    assert_engine(out)


def test_empty_directory_and_link_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real" / "pair").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "pair")
    build_components(tmp_path / "link", components(), make_manifest)
    assert (tmp_path / "link").is_symlink()
    assert_engine(tmp_path / "real" / "pair")


def test_engine_of_another_version_is_replaced(out: Path) -> None:
    build_components(out, components("old"), make_manifest)
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 0'))
    assert isinstance(build_components(out, components(), make_manifest), BuildReport)
    assert_engine(out)
