"""Tokenizer files that cannot be read: one sentence, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from engine.build.tokenizer import check_tokenizer, read_tokenizer, write_tokenizer
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


def with_step(part: str, step: dict[str, Any]) -> Callable[[Path], None]:
    """Of a `tokenizer.json`, behind its own."""

    def edit(data: bytes) -> bytes:
        held = json.loads(data)
        kind, name = {
            "normalizer": ("Sequence", "normalizers"),
            "pre_tokenizer": ("Sequence", "pretokenizers"),
            "post_processor": ("Sequence", "processors"),
            "decoder": ("Sequence", "decoders"),
        }[part]
        steps = [*filter(None, [held[part]]), step]
        return json.dumps(held | {part: {"type": kind, name: steps}}).encode()

    return break_file(write_llama3, "tokenizer.json", edit)


def split(words: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}


def replace_by(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


TWICE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
TWICE |= {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}


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
        (
            with_step("pre_tokenizer", split(r"(a|aa)+$")),
            r"cuts text by the regular expression '\(a\|aa\)\+\$', which is",
        ),
        (with_step("normalizer", replace_by({"Regex": r"(a|aa)+$"}, "")), "cuts text by the regular expression"),
        (with_step("decoder", replace_by({"Regex": r"\s+"}, "")), "makes text longer in its step 'Replace'"),
        (with_step("normalizer", replace_by({"String": "a"}, "aa")), "makes text longer in its step 'Replace'"),
        (with_step("normalizer", replace_by({"String": ""}, "a")), "makes text longer in its step 'Replace'"),
        (with_step("normalizer", {"type": "Prepend", "prepend": "x" * 17}), "makes text longer in its step 'Prepend'"),
        (with_step("post_processor", TWICE), "makes text longer in its step 'TemplateProcessing'"),
        (
            with_step("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 64}),
            "has more than 64 steps to a token",
        ),
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


def test_a_token_beyond_the_embedding(tmp_path: Path) -> None:
    write_qwen2(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    rows = max(tokenizer.get_vocab().values()) + 1
    check_tokenizer(tokenizer, tmp_path, rows, "<IMG_CONTEXT>")
    last = tokenizer.id_to_token(rows - 1)
    with pytest.raises(
        CheckpointError, match=rf"gives '{last}' the id {rows - 1}, but its config.json says vocab_size"
    ):
        check_tokenizer(tokenizer, tmp_path, rows - 1)
    with pytest.raises(CheckpointError, match="has no token <PICTURE>; download all its tokenizer files"):
        check_tokenizer(tokenizer, tmp_path, rows, "<PICTURE>")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": 5}, "additional_special_tokens is 5, not a list"),
        ("tokenizer_config.json", {"bos_token": {"a": 1}}, "describes an added token badly"),
        ("tokenizer_config.json", {"bos_token": ["<s>"]}, "describes an added token badly"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "tokenizer_class is 5, not a str"),
        ("tokenizer_config.json", {"add_bos_token": "no"}, "add_bos_token is 'no', not a bool"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\], not a dict"),
        ("added_tokens.json", {"<new>": [1]}, "describes an added token badly"),
        ("added_tokens.json", {"<new>": 1 << 24}, "describes an added token badly"),
        ("added_tokens.json", {"<new>": -1}, "describes an added token badly"),
        ("added_tokens.json", {"": 900}, "describes an added token badly"),
        ("tokenizer.json", {"added_tokens": {"a": 1}}, "added_tokens is .*, not a list"),
        ("vocab.json", {"a": [1]}, r"vocab.json gives 'a' the id \[1\]"),
        ("vocab.json", {"a": 7, "b": 7}, "gives 'b' and 'a' the same id 7"),
        ("vocab.json", {"a": True}, "gives 'a' the id True"),
    ],
)
def test_files_of_wrong_types(tmp_path: Path, name: str, content: dict[str, Any], sentence: str) -> None:
    write_qwen2(tmp_path)
    held = json.loads((tmp_path / name).read_text(encoding="utf-8")) if (tmp_path / name).exists() else {}
    write_json(tmp_path / name, content if name == "vocab.json" else held | content)
    with pytest.raises(CheckpointError, match=sentence):
        read_tokenizer(tmp_path)


def test_pieces_of_which_joining_would_take_for_ever(tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    for piece in ("<unk>", "a" * 257):
        model.pieces.add(piece=piece)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="pieces of more than 256 characters"):
        read_tokenizer(tmp_path)
    del model.pieces[1]
    model.pieces.add(piece="<unk>")
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="holds a piece twice"):
        read_tokenizer(tmp_path)
