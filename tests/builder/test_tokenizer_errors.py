"""Tokenizer files that cannot be read: one sentence, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.build.tokenizer import write_tokenizer
from engine.errors import CheckpointError
from tests.checkpoint_tokenizers import flags, write_json, write_llama, write_llama3, write_qwen2, write_sentencepiece


def break_llama(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        write_llama(directory, legacy=True)
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        change(config)
        write_json(path, config)

    return write


def break_file(write: Callable[[Path], Any], name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write_broken(directory: Path) -> None:
        write(directory)
        (directory / name).write_bytes(edit((directory / name).read_bytes()))

    return write_broken


def sentencepiece_of(vocab_size: int = 420, **options: Any) -> Callable[[Path], None]:
    return lambda directory: write_sentencepiece(directory / "tokenizer.model", vocab_size, **options)


def legacy_llama(directory: Path) -> None:
    write_llama(directory, legacy=True)


def without_decoder(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"decoder": None}).encode()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda directory: None, "holds no tokenizer; download"),
        (break_file(legacy_llama, "tokenizer.model", half), "download it again"),
        (break_file(legacy_llama, "tokenizer.model", lambda data: b""), "is truncated; download it again"),
        (
            break_file(legacy_llama, "tokenizer.model", lambda data: b"version https://git-lfs"),
            "not a SentencePiece model",
        ),
        (break_file(legacy_llama, "tokenizer_config.json", half), "tokenizer_config.json cannot be read as JSON"),
        (break_file(legacy_llama, "tokenizer_config.json", lambda data: b"[]"), "is not a JSON object"),
        (break_file(write_llama3, "tokenizer.json", half), "tokenizer.json cannot be read as JSON"),
        (break_file(write_llama3, "tokenizer.json", lambda data: b"{}"), "holds no BPE vocabulary"),
        (
            break_file(write_llama3, "tokenizer.json", lambda data: data.replace(b'"Split"', b'"?"')),
            "is not a tokenizer",
        ),
        (break_file(write_llama3, "tokenizer.json", without_decoder), "decodes neither"),
        (break_file(write_qwen2, "vocab.json", half), "vocab.json cannot be read as JSON"),
        (break_file(write_qwen2, "vocab.json", lambda data: b'{"a": 0}'), "lacks 255 of the 256 byte symbols"),
        (break_file(write_qwen2, "merges.txt", lambda data: data[:-3]), "merges.txt line"),
        (break_file(write_qwen2, "merges.txt", lambda data: b"\xff"), "merges.txt cannot be read"),
        (break_file(write_qwen2, "added_tokens.json", lambda data: b'{"<img>": 3}'), "the id 3, against another"),
        (
            break_llama(lambda config: config.update(tokenizer_class="T5Tokenizer")),
            "class 'T5Tokenizer', which is not read",
        ),
        (break_llama(lambda config: config.update(bos_token=None)), "adds bos_token, which it does not name"),
        (break_llama(lambda config: config["added_tokens_decoder"].update({"9": {"id": 9}})), "an added token badly"),
        (
            break_llama(lambda config: config["added_tokens_decoder"].update({"x": flags("<x>")})),
            "an added token badly",
        ),
        (
            break_llama(lambda config: config["added_tokens_decoder"].update({"900": flags("▁the")})),
            "contradict each other",
        ),
        (break_llama(lambda config: config["added_tokens_decoder"].update({"900": flags("<s>")})), "against another"),
        (sentencepiece_of(model_type="unigram", vocab_size=320), "a model type other than BPE"),
        (sentencepiece_of(normalization_rule_name="nmt_nfkc"), "the normalisation nmt_nfkc"),
        (sentencepiece_of(remove_extra_whitespaces=True), "removal of extra whitespace"),
        (sentencepiece_of(treat_whitespace_as_suffix=True), "whitespace as a suffix"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, write: Callable[[Path], None], sentence: str) -> None:
    write(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match=sentence) as raised:
        write_tokenizer(tmp_path, out)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert list(out.iterdir()) == []


def test_missing_merges_are_named(tmp_path: Path) -> None:
    write_qwen2(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot be read"):
        write_tokenizer(tmp_path, tmp_path)
