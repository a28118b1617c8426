"""Random weights of a size's dimensions are a checkpoint like any other, and are answered with."""

from pathlib import Path

import pytest

from engine.build.checkpoint import Checkpoint
from engine.build.read_role import check_weights, read_ends
from engine.families import family_of, published
from tests.saved_llava_onevision import save as save_llava
from tests.saved_qwen2_vl import save as save_qwen
from tools import random_published
from tools.random_published import main, write_published
from tools.random_weights import tensor_shapes


@pytest.mark.parametrize("save", [save_qwen, save_llava], ids=["qwen2_vl", "llava_onevision"])
def test_a_build_finds_every_tensor(tmp_path: Path, save: object) -> None:
    size = save(tmp_path / "size").directory  # type: ignore[operator]
    written = write_published(size, tmp_path / "out", lambda fraction: None)
    family, config = family_of(tmp_path / "out")
    read = family.read_config(tmp_path / "out", config)
    check_weights(Checkpoint(tmp_path / "out"), family, read)
    read_ends(family, read, tmp_path / "out")
    stored = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0 <= stored - written < 200_000, "names and shapes stand in the files, too"


def test_published_sizes_have_their_parameters() -> None:
    """In billions, as their names say."""
    for name, least, most in (("Qwen2-VL-2B", 2.0, 2.3), ("LLaVA-OneVision-0.5B", 0.8, 1.0)):
        family, config = family_of(published(name))
        shapes = tensor_shapes(family, family.read_config(published(name), config))
        count = 0
        for shape in shapes.values():
            size = 1
            for side in shape:
                size *= side
            count += size
        assert least < count / 1e9 < most


def test_it_is_built_and_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_published, "PICTURE", (112, 112))
    size = save_qwen(tmp_path / "size").directory
    assert main(["--size", str(size), "--new-tokens", "3", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "built in int8: " in out and "answered by large, 3 tokens: " in out
    assert not list(tmp_path.glob("random-*"))
