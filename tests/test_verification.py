"""Files of an engine directory against its manifest: what is damaged is named, what is unchanged is not read again."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import verification as module
from engine.engine_directory import STAMP, read_manifest
from engine.errors import ManifestError
from engine.manifest import FileRecord
from engine.verification import remember_verified, verify
from tests.manifests import FILES, edit, write_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose hashes were computed."""
    names: list[str] = []
    compute = module.file_sha256

    def record(path: Path) -> str:
        names.append(path.name)
        return compute(path)

    monkeypatch.setattr(module, "file_sha256", record)
    return names


def flip(path: Path) -> None:
    """Another content of the same size, time and inode, as a failing disk leaves it."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of 10240"),
        (lambda path: path.write_bytes(path.read_bytes() + b"!"), "has 10241 bytes instead of 10240"),
        (flip, "was altered"),
        (lambda path: (path.unlink(), path.mkdir()), "(has|cannot be read)"),
    ],
)
def test_damage_names_file_component_and_remedy(engine: Path, damage: Any, reason: str) -> None:
    manifest = read_manifest(engine)
    damage(engine / "small/vision.weights")
    with pytest.raises(ManifestError, match=f"small/vision.weights of component small/vision {reason}") as raised:
        verify(engine, manifest)
    assert "rebuild with sgl build" in str(raised.value)
    assert "only that component is rebuilt" in str(raised.value)
    options = "--precision int8 --max-tokens 513 --max-batch 3 --max-tiles 3"
    options += " --min-pixels 784 --max-pixels 7840 --prune-layers 1,2"
    assert f"--out {engine} {options} (only" in str(raised.value)
    verify(engine, manifest, components=["large/tokenizer", "large/language/rank0"])


def test_unknown_component(engine: Path) -> None:
    with pytest.raises(ManifestError, match="has no component small/language/rank7"):
        verify(engine, read_manifest(engine), components=["small/language/rank7"])


@pytest.mark.parametrize("name", FILES)
def test_engine_without_a_required_component_is_refused(engine: Path, name: str) -> None:
    edit(engine, lambda content: content["components"].pop(name))
    with pytest.raises(ManifestError, match=f"has no component {name}; rebuild with .* --precision int8"):
        verify(engine, read_manifest(engine), models=[name.split("/")[0]])
    verify(engine, read_manifest(engine), models={"small", "large"} - {name.split("/")[0]})


def test_every_rank_is_required(engine: Path) -> None:
    manifest = replace(read_manifest(engine), world_size=2)
    with pytest.raises(ManifestError, match=r"has no component large/language/rank1; rebuild with .* --tp 2"):
        verify(engine, manifest)
    verify(engine, manifest, models=["small"])


def test_unchanged_files_are_hashed_once(engine: Path, hashed: list[str]) -> None:
    manifest = read_manifest(engine)
    verify(engine, manifest, components=["small/vision"])
    assert sorted(hashed) == ["vision.onnx", "vision.weights"]
    verify(engine, manifest)
    assert sorted(hashed) == ["language.onnx", "tokenizer.json", "vision.onnx", "vision.weights"]
    stamp = (engine / STAMP).stat()
    verify(engine, manifest)
    assert len(hashed) == 4
    assert (engine / STAMP).stat().st_mtime_ns == stamp.st_mtime_ns
    verify(engine, manifest, full=True)
    assert len(hashed) == 8


def test_touched_file_is_hashed_again(engine: Path, hashed: list[str]) -> None:
    manifest = read_manifest(engine)
    verify(engine, manifest)
    hashed.clear()
    os.utime(engine / "small/vision.onnx", ns=(1, 1))
    copy = (engine / "large/tokenizer.json").read_bytes()
    (engine / "other").write_bytes(copy)
    os.utime(engine / "other", ns=(2, 2))
    (engine / "other").replace(engine / "large/tokenizer.json")
    verify(engine, manifest)
    assert sorted(hashed) == ["tokenizer.json", "vision.onnx"]


def test_stamp_of_another_manifest_is_not_trusted(engine: Path) -> None:
    manifest = read_manifest(engine)
    verify(engine, manifest)
    record = manifest.components["small/vision"]
    files = {**record.files, "small/vision.onnx": FileRecord(5, "0" * 64)}
    changed = replace(manifest, components={"small/vision": replace(record, files=files)})
    with pytest.raises(ManifestError, match="was altered"):
        verify(engine, changed, components=["small/vision"])


def test_full_check_sees_what_the_stamp_hides(engine: Path) -> None:
    manifest = read_manifest(engine)
    verify(engine, manifest)
    flip(engine / "small/vision.weights")
    verify(engine, manifest)
    with pytest.raises(ManifestError, match="was altered"):
        verify(engine, manifest, full=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"small/vision.onnx": 3}'])
def test_broken_stamp_is_ignored(engine: Path, hashed: list[str], content: str) -> None:
    manifest = read_manifest(engine)
    (engine / STAMP).write_text(content)
    verify(engine, manifest)
    assert len(hashed) == 4
    verify(engine, manifest)
    assert len(hashed) == 4


def test_remembered_files_need_no_hashing(engine: Path, hashed: list[str]) -> None:
    manifest = read_manifest(engine)
    remember_verified(engine, manifest)
    verify(engine, manifest)
    assert hashed == []


def test_read_only_directory_is_verified_without_a_stamp(
    engine: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(engine)
    opened = Path.open

    def refuse_writing(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        if "w" in mode:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, mode, *args, **named)

    monkeypatch.setattr(Path, "open", refuse_writing)
    engine.chmod(stat.S_IRUSR | stat.S_IXUSR)
    verify(engine, manifest)
    engine.chmod(stat.S_IRWXU)
    assert len(hashed) == 4
    assert not (engine / STAMP).exists()
