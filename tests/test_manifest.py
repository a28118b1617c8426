"""The manifest on disk: written at once, read exactly or refused in a sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.engine_directory import MANIFEST, is_engine_directory, read_manifest, write_manifest
from engine.errors import ManifestError
from engine.manifest import ComponentRecord
from engine.verification import verify
from tests.manifests import FILES, edit, example_manifest, write_engine


def language(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["models"]["large"]["config"]["language"]
    return found


def vision(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["models"]["large"]["config"]["vision"]
    return found


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


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
        (lambda c: c["models"]["small"].pop("scoring"), r"missing @ manifest.models\['small'\].scoring"),
        (lambda c: c["models"].pop("large"), r"models \['small'\] instead of"),
        (lambda c: c.update(max_tokens="8192"), "'8192' is not int"),
        (lambda c: c["exit"].update(enabled="false"), "'false' is not bool"),
        (lambda c: c.update(precision="fp3"), "invalid value for type, expected Precision"),
        (lambda c: c["guidance"].update(retention_ratio=1.5), r"retention_ratio 1.5 is outside"),
        (lambda c: c.update(components=[1]), "expected a mapping"),
        (lambda c: c.update(max_batch=-1), r"max_batch -1 is outside 1\.\."),
        (lambda c: c.update(max_kept_tokens=514), "max_kept_tokens 514 is above max_tokens 513"),
        (lambda c: c.update(world_size=5), "the large model: num_heads 6 does not divide by world_size 5"),
        (lambda c: c.update(gpu="\x1b[2J"), "gpu .* is no line of at most 255 characters"),
        (lambda c: c["versions"].update({"a\nb": "1"}), "versions .* is no line of"),
        (lambda c: language(c).update(num_kv_heads=10**29), "num_kv_heads 1000.* is outside 1..1024"),
        (lambda c: language(c).update(num_kv_heads=4), "num_heads 6 is not a multiple of num_kv_heads 4"),
        (lambda c: language(c).update(num_layers=2**63), "num_layers 9223372036854775808 is outside 1..1024"),
        (lambda c: language(c).update(num_layers=4), "the large model has other inputs and outputs than the engines"),
        (lambda c: language(c)["rope"].update(long_factor=[1.0]), "short_factor and long_factor are not 2 numbers"),
        (lambda c: language(c)["rope"].update(original_max_positions=None), "original_max_positions is missing"),
        (lambda c: c["models"]["large"].update(prune_layers=[2, 1]), r"prune_layers \(2, 1\) are not layers of 1\.\.2"),
        (lambda c: c["models"]["large"].update(prune_layers=[3]), r"prune_layers \(3,\) are not layers of 1\.\.2"),
        (lambda c: vision(c).update(image_size=56), "the large model has other inputs and outputs"),
        (lambda c: vision(c).update(output_size=25), "output_size 25 of the vision encoder is not"),
        (
            lambda c: c["components"]["small/vision"]["files"].update({"small/\0": {"bytes": 1, "sha256": ""}}),
            "outside",
        ),
        (lambda c: c["components"]["small/vision"]["files"].update({"x": {"bytes": -1, "sha256": ""}}), "bytes -1 is"),
        (lambda c: c["components"]["small/vision"]["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda c: c["components"]["small/vision"]["files"].update({"/x": {"bytes": 1, "sha256": ""}}), "outside"),
    ],
)
def test_manifest_of_another_make_is_one_sentence(engine: Path, change: Any, sentence: str) -> None:
    edit(engine, change)
    with pytest.raises(ManifestError, match=sentence) as raised:
        read_manifest(engine)
    assert f"rebuild with sgl build --small DIR --large DIR --out {engine}" in str(raised.value)
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
