"""Reading safetensors, against NumPy slices of what the safetensors library wrote."""

import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from engine.build.checkpoint import INDEX, WEIGHTS, Checkpoint
from engine.errors import CheckpointError

DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "odd": (5, 123),
        "line": (7,),
        "cube": (3, 5, 2),
        "none": (0, 3),
        "flat": (4, 0),
        "one": (1, 1),
        "point": (),
    }
    return {
        f"{name}.{np.dtype(dtype).name}": rng.standard_normal(shape).astype(dtype)
        for name, shape in shapes.items()
        for dtype in DTYPES
    }


TENSORS = arrays()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    save_file(TENSORS, directory / WEIGHTS)
    return directory


def write_sharded(directory: Path, num_shards: int = 3) -> dict[str, str]:
    """The tensors dealt out over shards; the weight map of the index beside them."""
    shard_of = {name: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, name in enumerate(TENSORS)}
    for file in set(shard_of.values()):
        save_file({name: TENSORS[name] for name in TENSORS if shard_of[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))
    return shard_of


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_every_tensor_of_a_whole_and_of_a_sharded_checkpoint(whole: Path, tmp_path: Path) -> None:
    write_sharded(tmp_path)
    for directory in (whole, tmp_path):
        checkpoint = Checkpoint(directory)
        assert checkpoint.names() == frozenset(TENSORS)
        for name, expected in TENSORS.items():
            assert checkpoint.shape(name) == expected.shape
            checkpoint.expect(name, expected.shape)
            assert_same(checkpoint.read(name), expected)


@given(st.data())
def test_ranges_equal_numpy_slices(whole: Path, data: st.DataObject) -> None:
    def draw_range(size: int) -> tuple[int, int]:
        start = data.draw(st.integers(0, size))
        return start, data.draw(st.integers(start, size))

    name = data.draw(st.sampled_from([name for name, array in TENSORS.items() if array.ndim]))
    array = TENSORS[name]
    rows = None
    expected = array
    if data.draw(st.booleans()):
        rows = [draw_range(array.shape[0]) for _ in range(data.draw(st.integers(0, 4)))]
        expected = np.concatenate([array[:0], *(array[start:stop] for start, stop in rows)])
    columns = None
    if array.ndim > 1 and data.draw(st.booleans()):
        columns = draw_range(array.shape[1])
        expected = expected[:, columns[0] : columns[1]]
    found = Checkpoint(whole).read(name, rows, columns)
    assert_same(found, expected)
    assert found.flags.c_contiguous


def test_the_index_decides_which_shard_counts(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": np.zeros(2), "b": np.zeros(2), "stray": np.zeros(2)}, tmp_path / first)
    save_file({"a": np.ones(3), "b": np.ones(3)}, tmp_path / second)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names() == {"a", "b"}
    assert_same(checkpoint.read("a"), np.zeros(2))
    assert_same(checkpoint.read("b"), np.ones(3))


def test_only_the_wanted_rows_are_read(tmp_path: Path) -> None:
    # A terabyte that is not there: a sparse file, read in any larger part it would not fit.
    shape = (1 << 20, 1 << 19)
    size = 2 * shape[0] * shape[1]
    header = json.dumps({"huge": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    row = np.arange(shape[1]).astype(ml_dtypes.bfloat16)
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(2 * shape[1] * 777_777, os.SEEK_CUR)
        file.write(row.tobytes())
        file.truncate(8 + len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = Checkpoint(tmp_path)
    found = checkpoint.read("huge", [(777_776, 777_778), (0, 1)])
    assert_same(found, np.stack([np.zeros_like(row), row, np.zeros_like(row)]))
    assert_same(checkpoint.read("huge", [(777_777, 777_778)], (3, 9)), row[None, 3:9])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000_000


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("odd.float32", [(0, 6)], None),
        ("odd.float32", [(-1, 2)], None),
        ("odd.float32", [(0, 1), (3, 2)], None),
        ("odd.float32", None, (0, 124)),
        ("odd.float32", [(0, 1)], (9, 8)),
        ("line.float32", None, (0, 1)),
        ("point.float32", [(0, 1)], None),
    ],
)
def test_ranges_outside_the_tensor(whole: Path, name: str, rows: list | None, columns: tuple | None) -> None:
    with pytest.raises(CheckpointError, match=rf"tensor {name} of .* which lacks rows"):
        Checkpoint(whole).read(name, rows, columns)


def test_missing_tensor_and_other_shape(whole: Path) -> None:
    checkpoint = Checkpoint(whole)
    for use in (checkpoint.shape, checkpoint.read):
        with pytest.raises(CheckpointError, match=r"tensor lm_head is missing from .*; download"):
            use("lm_head")
    with pytest.raises(CheckpointError, match=r"odd\.float16 of .* has shape \[5, 123\], but .* \[123, 5\]"):
        checkpoint.expect("odd.float16", (123, 5))


def test_other_dtypes_are_refused_only_when_read(tmp_path: Path) -> None:
    save_file({"positions": np.arange(4), "weight": np.ones(2, np.float32)}, tmp_path / WEIGHTS)
    checkpoint = Checkpoint(tmp_path)
    assert_same(checkpoint.read("weight"), np.ones(2, np.float32))
    with pytest.raises(CheckpointError, match=r"positions of .* is stored as I64"):
        checkpoint.read("positions")


def cut(directory: Path, name: str, size: int) -> None:
    with (directory / name).open("r+b") as file:
        file.truncate(size)


def edit_index(directory: Path, **changes: object) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"].update(changes)
    (directory / INDEX).write_text(json.dumps(index))


SHARD = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / SHARD).unlink(), rf"{SHARD} is missing, though {INDEX} names it"),
        (lambda d: cut(d, SHARD, (d / SHARD).stat().st_size - 1), rf"{SHARD} cannot be read as safetensors"),
        (lambda d: cut(d, SHARD, 20), rf"{SHARD} cannot be read as safetensors"),
        (lambda d: cut(d, SHARD, 0), rf"{SHARD} cannot be read as safetensors"),
        (lambda d: (d / SHARD).write_bytes(os.urandom(4096)), rf"{SHARD} cannot be read as safetensors"),
        (lambda d: (d / SHARD).write_bytes(b"\x09" + bytes(7) + b"{garbage}"), rf"{SHARD} cannot be read"),
        (lambda d: (d / INDEX).write_text('{"weight_map": {'), rf"{INDEX} cannot be read as JSON"),
        (lambda d: (d / INDEX).write_bytes(b"\xff\x00"), rf"{INDEX} cannot be read as JSON"),
        (lambda d: (d / INDEX).write_text("[]"), rf"{INDEX} is not a JSON object"),
        (lambda d: (d / INDEX).write_text('{"weight_map": 3}'), "is not an index of safetensors"),
        (lambda d: (d / INDEX).write_text('{"metadata": {}}'), "is not an index of safetensors"),
        (lambda d: edit_index(d, x="../other/model.safetensors"), "names shard '../other/model.safetensors'"),
        (lambda d: edit_index(d, x="/etc/model.safetensors"), "names shard '/etc/model.safetensors'"),
        (lambda d: edit_index(d, x="pytorch_model.bin"), "names shard 'pytorch_model.bin'"),
        (lambda d: edit_index(d, x=7), "is not an index of safetensors"),
        (lambda d: edit_index(d, x="a" * 300 + ".safetensors"), "names shard 'aaaaaaa"),
        (lambda d: edit_index(d, x="a\0.safetensors"), r"names shard 'a\\x00.safetensors'"),
        (lambda d: (d / SHARD).write_bytes(bytes([255]) * 64), "its list of tensors has more than"),
        (lambda d: edit_index(d, ghost=SHARD), rf"{SHARD} lacks tensor ghost"),
    ],
)
def test_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    write_sharded(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        Checkpoint(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "holds no weights; download model.safetensors"),
        (["config.json"], "holds no weights"),
        (["pytorch_model.bin"], r"pickled weights \(pytorch_model.bin\).*no code from a checkpoint is executed"),
        (["consolidated.pt"], r"pickled weights \(consolidated.pt\)"),
        (["model-00001-of-00002.safetensors"], f"neither model.safetensors nor {INDEX}"),
    ],
)
def test_nothing_readable(tmp_path: Path, files: list[str], sentence: str) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=sentence):
        Checkpoint(tmp_path)


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent is not a directory"):
        Checkpoint(tmp_path / "absent")


def test_shards_may_be_links_into_a_download_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for file in set(write_sharded(tmp_path / "blobs").values()):
        (tmp_path / "snapshot" / file).symlink_to(tmp_path / "blobs" / file)
    (tmp_path / "snapshot" / INDEX).symlink_to(tmp_path / "blobs" / INDEX)
    assert_same(Checkpoint(tmp_path / "snapshot").read("odd.bfloat16"), TENSORS["odd.bfloat16"])


def test_file_damaged_after_opening(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / WEIGHTS)
    checkpoint = Checkpoint(tmp_path)
    cut(tmp_path, WEIGHTS, 100)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        checkpoint.read("odd.float32", [(0, 1)])


def test_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    seen: list[float] = []
    first = Checkpoint(tmp_path).fingerprint(seen.append)
    assert len(first) == 64
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    (tmp_path / "README.md").write_text("not read by a build")
    assert Checkpoint(tmp_path).fingerprint() == first
    fingerprints = {first}
    for file in ("config.json", "tokenizer.model", SHARD, INDEX):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if file == SHARD else content + b" ")
        fingerprints.add(Checkpoint(tmp_path).fingerprint())
        (tmp_path / file).write_bytes(content)
    (tmp_path / "tokenizer.model").rename(tmp_path / "spiece.model")
    fingerprints.add(Checkpoint(tmp_path).fingerprint())
    assert len(fingerprints) == 6
