"""The normal form of each published tokenizer, against the libraries that read the published files themselves.

The slow tokenizers of transformers are the reference (see engine/build/tokenizer.py); `SentencePieceBackend` is the one
that transformers still has for `tokenizer.model`.
"""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from engine.build.tokenizer import write_tokenizer
from engine.runtime.tokenizer import Tokenizer
from tests.checkpoint_tokenizers import (
    FRAGMENTS,
    IMAGE_TOKENS,
    PHI3_TOKENS,
    RESERVED,
    texts,
    write_internlm2,
    write_json,
    write_llama,
    write_llama3,
    write_qwen2,
    write_sentencepiece,
)


class SlowLlama(SentencePieceBackend):
    """Not legacy: one prefix before the text, dropped where a special token follows it at once."""

    def tokenize(self, text: str, *rest: Any, **options: Any) -> list[str]:
        tokens = super().tokenize("▁" + text.replace("▁", " "), *rest, **options) if text else []
        return tokens[1:] if len(tokens) > 1 and tokens[0] == "▁" and tokens[1] in self.all_special_tokens else tokens


def normal_form(checkpoint: Path) -> Tokenizer:
    out = checkpoint / "out"
    out.mkdir()
    write_tokenizer(checkpoint, out)
    return Tokenizer.load(out / "tokenizer.json")


def assert_same_ids(normal: Tokenizer, oracle: Callable[[str], list[int]], samples: list[str]) -> None:
    assert len(samples) >= 1000
    different = [text for text in samples if normal.encode(text) != oracle(text)]
    assert different == []


def test_internlm2_is_the_slow_sentencepiece_tokenizer(tmp_path: Path) -> None:
    tokens = write_internlm2(tmp_path)
    oracle = SentencePieceBackend.from_pretrained(tmp_path)
    normal = normal_form(tmp_path)
    samples = texts(tokens) + [f"{text} {RESERVED}{text}" for text in texts(tokens)]
    assert_same_ids(normal, lambda text: [1, *oracle(text).input_ids], samples)


def test_text_cannot_name_a_token_by_the_piece_that_it_took_over(tmp_path: Path) -> None:
    write_internlm2(tmp_path)
    normal = normal_form(tmp_path)
    assert normal.token_id("<|im_end|>") in normal.encode("a<|im_end|>")
    assert normal.token_id("<|im_end|>") not in normal.encode("a[UNUSED_TOKEN_1]")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "vocab_size": 160},
        {"add_dummy_prefix": False, "user_defined_symbols": ["<ud>", "▁▁▁"], "vocab_size": 430},
        {"character_coverage": 0.98, "vocab_size": 400},
        {"split_by_whitespace": False},
        {"control_symbols": ["%%%%"]},
    ],
    ids=lambda options: "-".join(options) or "usual",
)
def test_legacy_llama_is_the_slow_sentencepiece_tokenizer(tmp_path: Path, options: dict[str, Any]) -> None:
    tokens = write_llama(tmp_path, legacy=True, **options)
    oracle = SentencePieceBackend.from_pretrained(tmp_path)
    assert_same_ids(normal_form(tmp_path), lambda text: [1, *oracle(text).input_ids], texts((*tokens, "<ud>")))


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}], ids=["usual", "no-dummy-prefix"])
def test_phi3_is_the_slow_llama_tokenizer(tmp_path: Path, options: dict[str, Any]) -> None:
    tokens = write_llama(tmp_path, legacy=False, **options)
    oracle = SlowLlama.from_pretrained(tmp_path)
    assert_same_ids(normal_form(tmp_path), lambda text: [1, *oracle(text).input_ids], texts(tokens))


def test_user_defined_pieces_are_found_behind_the_prefix(tmp_path: Path) -> None:
    write_llama(tmp_path, legacy=False, user_defined_symbols=["<ud>", "▁▁▁"])
    oracle = SlowLlama.from_pretrained(tmp_path)
    samples = [text for text in texts((*IMAGE_TOKENS, "<ud>")) if text != "   "]
    assert_same_ids(normal_form(tmp_path), lambda text: [1, *oracle(text).input_ids], samples)


def test_phi3_strips_behind_its_tokens_and_prefixes_the_text_once(tmp_path: Path) -> None:
    write_llama(tmp_path, legacy=False)
    normal = normal_form(tmp_path)
    begin, space, user, image = (normal.token_id(token) for token in ("<s>", "▁", "<|user|>", "<img>"))
    assert normal.encode("<|user|>\n hello") == [begin, space, user, *normal.encode("<img>hello")[2:]]
    assert normal.encode("<img>") == [begin, image]


@pytest.mark.parametrize("legacy", [None, True, False])
def test_text_without_added_tokens_is_what_sentencepiece_makes_of_it(tmp_path: Path, legacy: bool | None) -> None:
    write_llama(tmp_path, legacy=legacy)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    samples = [text for text in texts((), 2000) if legacy is not False or "▁" not in text]
    assert_same_ids(normal_form(tmp_path), lambda text: [1, *model.encode(text)], samples + list(FRAGMENTS))


def test_qwen2_is_the_library_tokenizer(tmp_path: Path) -> None:
    tokens = write_qwen2(tmp_path)
    oracle = Qwen2Tokenizer.from_pretrained(tmp_path)
    assert_same_ids(normal_form(tmp_path), lambda text: oracle(text).input_ids, texts(tokens))


def test_qwen2_composes_characters_before_it_looks_for_tokens(tmp_path: Path) -> None:
    write_qwen2(tmp_path)
    normal = normal_form(tmp_path)
    text = "a<img>\u0338 e\u0301 \u212b"
    assert normal.token_id("<img>") not in normal.encode(text)
    assert normal.encode(text) == normal.encode(unicodedata.normalize("NFC", text))


def test_added_tokens_keep_ids_behind_a_gap(tmp_path: Path) -> None:
    write_qwen2(tmp_path, gap=5)
    published = json.loads((tmp_path / "added_tokens.json").read_text(encoding="utf-8"))
    normal = normal_form(tmp_path)
    assert {token: normal.encode(token) for token in published} == {token: [i] for token, i in published.items()}


def test_merges_of_a_number_sign_are_no_comments(tmp_path: Path) -> None:
    write_qwen2(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    number_signs = vocab.pop("%%")
    write_json(tmp_path / "vocab.json", vocab | {"##": number_signs})
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").split("\n")
    kept = [line for line in merges if "%" not in line.replace(" ", "")]
    (tmp_path / "merges.txt").write_text("\n".join([*kept[:-1], "# #", ""]), encoding="utf-8")
    assert normal_form(tmp_path).encode("##") == [number_signs]


def test_llama3_is_the_library_tokenizer(tmp_path: Path) -> None:
    tokens = write_llama3(tmp_path)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    normal = normal_form(tmp_path)
    assert_same_ids(normal, lambda text: oracle(text).input_ids, texts(tokens))
    assert normal.encode("a")[0] == normal.token_id("<|begin_of_text|>")
    assert normal.encode("<img>  a") == normal.encode("<img>a")


def test_tokens_of_added_tokens_json_alone_are_found(tmp_path: Path) -> None:
    """The form of old checkpoints, special tokens in `special_tokens_map.json`."""
    write_sentencepiece(tmp_path / "tokenizer.model", 420)
    write_json(tmp_path / "added_tokens.json", {"<img>": 420, "<IMG_CONTEXT>": 421})
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "pad_token": "[PAD]"})
    config = {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["<img>"], "pad_token": None}
    write_json(tmp_path / "tokenizer_config.json", config)
    oracle = SentencePieceBackend.from_pretrained(tmp_path, unk_token="<unk>", eos_token="</s>")
    tokens = ("<img>", "<IMG_CONTEXT>", "<s>", "</s>", "[PAD]")
    normal = normal_form(tmp_path)
    assert_same_ids(normal, lambda text: [1, *oracle(text).input_ids], texts(tokens))
    assert normal.decode(normal.encode("a<img>b<IMG_CONTEXT>")) == "a b<IMG_CONTEXT>"


def test_the_map_of_special_tokens_gives_way_to_added_tokens_decoder(tmp_path: Path) -> None:
    write_llama(tmp_path, legacy=True)
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": "<unk>"})
    assert normal_form(tmp_path).encode("")[0] == 1


@pytest.mark.parametrize(("name", "slow"), [(None, True), ("Qwen2Tokenizer", True), ("Qwen2TokenizerFast", False)])
def test_files_of_the_slow_tokenizer_go_first(tmp_path: Path, name: str | None, slow: bool) -> None:
    write_llama3(tmp_path)
    shutil.copy(tmp_path / "parts" / "vocab.json", tmp_path)
    shutil.copy(tmp_path / "parts" / "merges.txt", tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name} if name else {})
    normal = normal_form(tmp_path)
    begins = normal.encode("a")[0] == normal.token_id("<|begin_of_text|>")
    assert begins is not slow


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_ends_of_text_are_those_of_the_configuration(tmp_path: Path, begin: bool, end: bool) -> None:
    write_llama(tmp_path, legacy=True)
    path = tmp_path / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"add_bos_token": begin, "add_eos_token": end})
    normal = normal_form(tmp_path)
    ids = normal.encode("the image")
    assert (ids[0] == normal.token_id("<s>"), ids[-1] == normal.token_id(PHI3_TOKENS[0])) == (begin, end)


def test_every_image_token_is_one_id(tmp_path: Path) -> None:
    write_internlm2(tmp_path)
    normal = normal_form(tmp_path)
    start, end, context = (normal.token_id(token) for token in IMAGE_TOKENS)
    ids = normal.encode(f"<img>{'<IMG_CONTEXT>' * 300}</img>")
    assert ids == [normal.token_id("<s>"), start, *[context] * 300, end]
