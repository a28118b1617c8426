"""Decoding, streaming and stopping, against the libraries' decoding and a search over the whole text."""

import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from engine.build.tokenizer import write_tokenizer
from engine.errors import ManifestError, RequestError
from engine.runtime.tokenizer import TextStream, Tokenizer
from tests.checkpoint_tokenizers import write_internlm2, write_llama, write_qwen2

FORMS = {
    "internlm2": write_internlm2,
    "phi3": lambda directory: write_llama(directory, legacy=False),
    "no-prefix": lambda directory: write_llama(directory, legacy=True, add_dummy_prefix=False),
    "qwen2": write_qwen2,
}
IDS = st.lists(st.integers(0, 500), max_size=40)
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"))
"""Without special tokens, which are no text, and without the letter that stands for a space."""


@pytest.fixture(scope="module", params=FORMS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint with its normal form in it."""
    path = tmp_path_factory.mktemp(request.param)
    FORMS[request.param](path)
    write_tokenizer(path, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("qwen2")
    write_qwen2(path)
    write_tokenizer(path, path)
    return Tokenizer.load(path / "tokenizer.json")


def stream(tokenizer: Tokenizer, ids: Iterable[int], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    text = TextStream(tokenizer, stop)
    parts = [text.push(token_id) for token_id in ids]
    return "".join(parts) + text.flush(), text.stopped


def until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the stop text that a reader, letter by letter, sees completed first."""
    for end in range(len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(text=UNICODE)
def test_decoding_returns_the_encoded_text(tokenizer: Tokenizer, directory: Path, text: str) -> None:
    composed = unicodedata.normalize("NFC", text) if (directory / "merges.txt").exists() else text
    assert tokenizer.decode(tokenizer.encode(text)) == composed


@given(ids=IDS)
def test_decoding_is_the_libraries(tokenizer: Tokenizer, directory: Path, ids: list[int]) -> None:
    """SentencePiece writes U+FFFD for every broken byte, UTF-8 decoders one for a broken character."""
    model = directory / "tokenizer.model"
    if model.exists():
        original = sentencepiece.SentencePieceProcessor(model_file=str(model))
        ids = [i for i in ids if i < original.get_piece_size() and tokenizer.special(i) is None and i > 2]
        expected = original.decode(ids)
    else:
        # the library takes the letters of added tokens for byte symbols
        ids = [i for i in ids if i != tokenizer.token_id("<référence>")]
        expected = Library.from_file(str(directory / "tokenizer.json")).decode(ids)
    assert re.sub("\ufffd+", "\ufffd", tokenizer.decode(ids)) == re.sub("\ufffd+", "\ufffd", expected)


@given(ids=IDS)
def test_a_stream_adds_up_to_the_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert stream(tokenizer, ids) == (tokenizer.decode(ids), False)


@given(text=UNICODE)
def test_a_stream_of_encoded_text_adds_up_to_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert stream(tokenizer, ids) == (tokenizer.decode(ids), False)


@given(text=st.text("abe\n 你", max_size=30), stop=st.lists(st.text("abe\n 你", min_size=1, max_size=4), max_size=3))
def test_a_stream_ends_before_the_first_complete_stop_text(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    assert stream(tokenizer, tokenizer.encode(text), tuple(stop)) == until_stop(text, tuple(stop))


@given(ids=IDS, data=st.data())
def test_a_stop_text_that_occurs_ends_any_stream(tokenizer: Tokenizer, ids: list[int], data: st.DataObject) -> None:
    text = tokenizer.decode(ids)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    word = text[start : start + data.draw(st.integers(1, 12))] or "never"
    assert stream(tokenizer, ids, (word, "never")) == until_stop(text, (word, "never"))


@given(text=st.text("abe\n 你", max_size=30), stop=st.lists(st.text("abe\n 你", min_size=1, max_size=4), max_size=3))
def test_what_a_stream_returns_is_the_start_of_the_final_text(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    final, _ = until_stop(text, tuple(stop))
    held = TextStream(tokenizer, tuple(stop))
    returned = ""
    for token_id in tokenizer.encode(text):
        returned += held.push(token_id)
        assert final.startswith(returned)


def test_text_that_no_stop_text_can_reach_is_returned_at_once(qwen2: Tokenizer) -> None:
    held = TextStream(qwen2, ("ab!",))
    assert [held.push(i) for i in (qwen2.token_id(c) for c in "xabab?")] == ["x", "", "", "ab", "", "ab?"]


def test_the_cut_does_not_depend_on_the_tokens(qwen2: Tokenizer) -> None:
    letters = [qwen2.token_id(letter) for letter in "abab"]
    assert stream(qwen2, letters, ("abab", "ba")) == ("a", True)
    assert stream(qwen2, [qwen2.token_id("abab")], ("abab", "ba")) == ("a", True)


def test_a_character_is_returned_with_its_last_byte(qwen2: Tokenizer) -> None:
    ids = qwen2.encode("😀")
    assert len(ids) == 4
    held = TextStream(qwen2)
    assert [held.push(i) for i in ids] == ["", "", "", "😀"]
    held = TextStream(qwen2)
    assert [held.push(i) for i in ids[:3]] == ["", "", ""]
    assert held.flush() == "\ufffd"


def test_a_stop_text_costs_no_more_than_the_text_is_long(qwen2: Tokenizer) -> None:
    """Millions of characters, for each of which nobody looks: others wait meanwhile."""
    ids = qwen2.encode("a bee ") * 20
    text = qwen2.decode(ids)
    for stop in ("b" * 4_000_000, text + "b" * 4_000_000):
        assert stream(qwen2, ids, (stop,)) == (text, False)


def test_a_special_token_that_is_a_stop_text_ends_the_stream(qwen2: Tokenizer) -> None:
    ids = [*qwen2.encode("the image<"), qwen2.token_id("<|im_end|>"), *qwen2.encode("after")]
    assert stream(qwen2, ids, ("<|im_end|>",)) == ("the image<", True)
    assert stream(qwen2, ids) == ("the image<after", False)


def test_nothing_comes_out_of_a_stopped_stream(qwen2: Tokenizer) -> None:
    held = TextStream(qwen2, ("a",))
    broken = qwen2.encode("😀")[0]
    assert [held.push(i) for i in [*qwen2.encode("xa"), broken, *qwen2.encode("x")]] == ["x", "", "", ""]
    assert held.flush() == ""
    assert held.stopped


def test_special_tokens_are_no_text_and_others_are(qwen2: Tokenizer) -> None:
    ids = [qwen2.token_id(token) for token in ("<|im_start|>", "<ref>", "<référence>", "<|im_end|>")]
    assert qwen2.decode(ids) == "<ref><référence>"


def test_an_id_without_a_token_is_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([100_000, *tokenizer.encode("hello"), 100_000]) == "hello"


def test_user_errors_are_one_sentence(qwen2: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a stop text is empty; leave it out"):
        TextStream(qwen2, ("a", ""))
    with pytest.raises(RequestError, match="character 1 of the text is half a surrogate pair"):
        qwen2.encode("a\ud83d")
    with pytest.raises(ManifestError, match="has no token '<nothing>'"):
        qwen2.token_id("<nothing>")
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ManifestError, match="is missing; build the engine again"):
        Tokenizer.load(path)
    path.write_text('{"model": ')
    with pytest.raises(ManifestError, match=r"is not a tokenizer .*; build the engine again"):
        Tokenizer.load(path)


def test_loading_imports_nothing_of_the_build() -> None:
    code = "import sys, engine.runtime.tokenizer; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(run.stdout.split())
    assert "tokenizers" in modules
    assert not modules & {"transformers", "torch", "sentencepiece", "google", "onnx"}
