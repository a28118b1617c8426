"""Memory for keys and values that nobody has yet written."""

from pathlib import Path

import numpy as np
import pytest

from engine.errors import EngineError
from engine.runtime import host_memory
from engine.runtime.host_memory import free_memory, reserve


@pytest.mark.parametrize("size", [1 << 50, 1 << 61])
def test_more_than_there_can_be_is_refused_in_a_sentence(size: int) -> None:
    with pytest.raises(EngineError, match=r"has no [\d,.]+ GiB of memory for keys and values .*; ask fewer questions"):
        reserve((size,), np.dtype(np.float32))


MIB = 2**20


@pytest.mark.parametrize(
    ("limit", "used", "files", "free"),
    [
        (100, 30, (0, 0, 0), 70),
        (100, 95, (50, 20, 10), 65),
        (100, 95, (0, 3, 10), 5),
        (100, 101, (0, 0, 0), 0),
        (2**50, 30, (0, 0, 0), None),
        (None, 30, (0, 0, 0), None),
    ],
)
def test_what_a_container_has_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    used: int,
    files: tuple[int, int, int],
    free: int | None,
) -> None:
    """What it has cached of files is free, but for what is mapped."""
    names = ("inactive_file", "active_file", "file_mapped")
    (tmp_path / "memory.max").write_text("max\n" if limit is None else f"{limit * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{used * MIB}\n")
    stat = "".join(f"{name} {count * MIB}\n" for name, count in zip(names, files, strict=True))
    (tmp_path / "memory.stat").write_text("anon 0\n" + stat)
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path / "nowhere")
    machine = free_memory()
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path)
    assert free_memory() == (pytest.approx(machine, rel=0.5) if free is None else free * MIB)
