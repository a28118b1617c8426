"""The engine directory: manifest on disk, and verification of files against it."""

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import manifest as module
from engine.errors import ManifestError
from engine.manifest import (
    MANIFEST,
    STAMP,
    ComponentRecord,
    FileRecord,
    is_engine_directory,
    read_manifest,
    remember_verified,
    verify,
    write_manifest,
)
from tests.manifests import example_manifest

FILES = {
    "small/vision": {"small/vision.onnx": b"graph", "small/vision.weights": bytes(range(256)) * 40},
    "large/language/rank0": {"large/rank0/language.onnx": b"other graph"},
    "large/tokenizer": {"large/tokenizer.json": b""},
    **{name: {} for name in ("small/tokenizer", "small/language/rank0", "large/vision")},
}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    directory = tmp_path / "engine"
    components = {}
    for name, files in FILES.items():
        records = {}
        for file, content in files.items():
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_bytes(content)
            records[file] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        components[name] = ComponentRecord("key of " + name, records, peak_bytes=123, seconds=1.5)
    write_manifest(directory, example_manifest(components))
    return directory


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


def edit(engine: Path, change: Any) -> None:
    content = json.loads((engine / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (engine / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def test_round_trip_is_exact_and_readable(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest == example_manifest(manifest.components)
    assert isinstance(manifest.models["large"].prune_layers, tuple)
    text = (engine / MANIFEST).read_text(encoding="utf-8")
    assert '\n  "target": "onnxruntime"' in text
    assert "你好" in text
    assert sorted(path.name for path in engine.iterdir()) == ["large", "manifest.json", "small"]


def test_sizes_add_up(engine: Path) -> None:
    sizes = {name: sum(map(len, files.values())) for name, files in FILES.items()}
    manifest = read_manifest(engine)
    assert {name: record.total_bytes() for name, record in manifest.components.items()} == sizes
    assert manifest.total_bytes() == sum(sizes.values())


def test_manifest_is_never_written_in_place(engine: Path) -> None:
    reader = engine / "opened by a reader"
    reader.hardlink_to(engine / MANIFEST)
    before = reader.read_bytes()
    write_manifest(engine, replace(read_manifest(engine), max_batch=17))
    assert reader.read_bytes() == before
    assert read_manifest(engine).max_batch == 17


def test_failed_write_leaves_the_old_manifest(engine: Path) -> None:
    before = (engine / MANIFEST).read_bytes()
    unwritable = example_manifest({"small/vision": ComponentRecord("", {}, 0, seconds=float("nan"))})
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(engine, unwritable)
    assert (engine / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in engine.iterdir()) == ["large", "manifest.json", "small"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(format_version=99), "format version 99"),
        (lambda c: c.pop("format_version"), "format version None"),
        (lambda c: c.update(target="tensorrt_9"), "target 'tensorrt_9'"),
        (lambda c: c.pop("max_batch"), "required field missing @ manifest.max_batch"),
        (lambda c: c.update(colour="red"), "extra fields found .*colour"),
        (lambda c: c["models"]["small"].pop("scores"), r"missing @ manifest.models\['small'\].scores"),
        (lambda c: c["models"].pop("large"), r"models \['small'\] instead of"),
        (lambda c: c.update(max_tokens="8192"), "'8192' is not int"),
        (lambda c: c["exit"].update(enabled="false"), "'false' is not bool"),
        (lambda c: c.update(precision="fp3"), "invalid value for type, expected Precision"),
        (lambda c: c["guidance"].update(retention_ratio=1.5), r"retention_ratio 1.5 is outside"),
        (lambda c: c.update(components=[1]), "expected a mapping"),
        (lambda c: c["components"]["small/vision"]["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda c: c["components"]["small/vision"]["files"].update({"/x": {"bytes": 1, "sha256": ""}}), "outside"),
    ],
)
def test_manifest_of_another_make_is_one_sentence(engine: Path, change: Any, sentence: str) -> None:
    edit(engine, change)
    with pytest.raises(ManifestError, match=sentence) as raised:
        read_manifest(engine)
    assert f"rebuild with build_engines.py --small DIR --large DIR --out {engine}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_broken_manifest_is_one_sentence(engine: Path, content: bytes) -> None:
    (engine / MANIFEST).write_bytes(content)
    with pytest.raises(
        ManifestError, match=r"manifest\.json (cannot be read as JSON|is not a JSON object).*the options of the first"
    ):
        read_manifest(engine)
    assert not is_engine_directory(engine)
    (engine / "small/rank0").mkdir()
    (engine / "small/rank0/language.onnx").write_bytes(b"graph")
    assert is_engine_directory(engine)


def test_missing_manifest_is_no_finished_engine(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ManifestError, match=r"manifest\.json is missing, so .* is no finished engine directory"):
            read_manifest(directory)
        assert not is_engine_directory(directory)


def test_verified_directory_stays_an_engine_directory(engine: Path) -> None:
    verify(engine, read_manifest(engine))
    (engine / MANIFEST).write_bytes(b"{")
    assert is_engine_directory(engine)


def test_is_engine_directory_of_any_version(engine: Path, tmp_path: Path) -> None:
    edit(engine, lambda content: content.update(format_version=99))
    assert is_engine_directory(engine)
    (tmp_path / MANIFEST).write_text('{"name": "a web page", "icons": []}')
    assert not is_engine_directory(tmp_path)


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
    assert "rebuild with build_engines.py" in str(raised.value)
    assert "only that component is rebuilt" in str(raised.value)
    options = "--precision int8 --max-tokens 513 --max-batch 3 --max-tiles 3 --prune-layers 1,2"
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
