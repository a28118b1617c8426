"""Random checkpoints: complete, readable by the original libraries, reproducible."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, SamplingConfig
from engine.families import by_name, family_of
from engine.runtime.answer import AnsweredBy
from engine.runtime.pipeline import SglPipeline
from tools.make_random_pair import LARGE, SMALL, main
from tools.random_checkpoint import SPECIAL_TOKENS, VOCAB_SIZE, tensor_shapes, write_checkpoint
from tools.random_families import ROLES, SIZES


def read(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name).float().numpy() for name in opened.keys()}  # noqa: SIM118
    return tensors


def test_pair_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--seed", "3"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    for name, published in (("small", SMALL), ("large", LARGE)):
        directory = tmp_path / name
        family, config = family_of(directory)
        assert family.read_config(directory, config).vision.tokens_per_tile() == 16
        tensors = read(directory)
        assert {tensor: array.shape for tensor, array in tensors.items()} == tensor_shapes(published)
        assert all(np.isfinite(array).all() and array.std() > 0 for array in tensors.values())
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        assert tokenizer.get_vocab_size() <= VOCAB_SIZE
        assert json.loads((directory / "added_tokens.json").read_text()) == {
            token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS
        }
    index = json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in read(tmp_path / "large").values())
    assert [file.name for file in (tmp_path / "small").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("text", ["Hi there", "<img><IMG_CONTEXT></img>\nWhat?", "你好 <|im_end|> café\t1234", ""])
def test_tokenizer_files_are_read_by_transformers(text: str, tmp_path: Path) -> None:
    main(["--out", str(tmp_path)])
    ids = Tokenizer.from_file(str(tmp_path / "small" / "tokenizer.json")).encode(text).ids
    original = AutoTokenizer.from_pretrained(tmp_path / "small", local_files_only=True)
    assert original(text)["input_ids"] == ids
    assert original.decode(ids) == text


def test_weights_depend_on_the_seed_and_not_on_the_shards(tmp_path: Path) -> None:
    for name, seed, shards in (("one", 1, 1), ("four", 1, 4), ("other", 2, 1)):
        write_checkpoint(tmp_path / name, SMALL, seed, shards)
    one, four, other = (read(tmp_path / name) for name in ("one", "four", "other"))
    assert one.keys() == four.keys()
    assert all((one[name] == four[name]).all() for name in one)
    assert all((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("family", SIZES)
def test_a_pair_of_every_family_is_built_and_answers(family: str, tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "pair"), "--family", family]) == 0
    small, large = (tmp_path / "pair" / role for role in ROLES)
    assert family_of(small)[0] is by_name(family)
    assert any((small / file.name).read_bytes() != file.read_bytes() for file in large.glob("*.safetensors"))
    build_pair(BuildConfig(small, large, tmp_path / "engine", max_tokens=256, max_batch=1, prune_layers=(2,)))
    with SglPipeline.load(tmp_path / "engine", threads=1) as pipeline:
        exit, sampling = ExitConfig(enabled=False), SamplingConfig(max_new_tokens=3)
        answer = pipeline.answer([Image.new("RGB", (90, 70))], "What is there?", exit=exit, sampling=sampling)
    assert answer.answered_by is AnsweredBy.LARGE
    assert 0 < answer.num_kept() < answer.visual_tokens


def test_unwritable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file")]) == 2
    assert "choose another --out" in capsys.readouterr().err
