"""What was said before, spelling control tokens, next to the same prompt with nothing to hide."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from engine.build.tokenizer import write_tokenizer
from engine.errors import RequestError
from engine.families import Part, Prompt
from engine.runtime.said import SaidText
from engine.runtime.tokenizer import Tokenizer
from tests.checkpoint_tokenizers import FRAGMENTS, write_internlm2, write_llama, write_llama3, write_qwen2

FORMS = {
    "internlm2": (write_internlm2, "<|im_start|>", "<|im_end|>"),
    "phi3": (lambda directory: write_llama(directory, legacy=False), "<|user|>", "<|end|>"),
    "phi3 behind text": (lambda directory: write_llama(directory, legacy=False), "I: <|user|>", "<|end|>"),
    "yi": (lambda directory: write_llama(directory, legacy=True), "<|user|>", "<|end|>"),
    "no-prefix": (lambda directory: write_llama(directory, legacy=True, add_dummy_prefix=False), "<|user|>", "<|end|>"),
    "qwen2": (write_qwen2, "<|im_start|>", "<|im_end|>"),
    "llama3": (write_llama3, "<|eot_id|>", "<|end_of_text|>"),
    "no control token in front": (write_qwen2, "I: ", "<|im_end|>"),
}
"""How a checkpoint is written, and what stands before and behind a turn."""
CONTROL = ("<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>", "<|end|>", "<|eot_id|>", "</s>", "<s>")
PLAIN = tuple(fragment for fragment in FRAGMENTS if "▁" not in fragment)
"""Without the letter that stands for a space."""
TEXT = st.lists(st.sampled_from(PLAIN), max_size=10).map("".join)
SPELLING = st.lists(st.sampled_from((*PLAIN, *CONTROL * 5)), max_size=10).map("".join)
Form = tuple[Library, Tokenizer, str, str]


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Form:
    write, start, end = FORMS[request.param]
    path = tmp_path_factory.mktemp("tokenizer")
    write(path)
    write_tokenizer(path, path)
    file = path / "tokenizer.json"
    return Library.from_file(str(file)), Tokenizer.load(file), start, end


def prompt(form: Form, question: str, said: str) -> Prompt:
    _, _, start, end = form
    picture = "<img><IMG_CONTEXT><IMG_CONTEXT></img>\n"
    parts = (Part(start), Part(picture + question), Part(end), Part(start), Part(said, is_said=True), Part(end))
    return Prompt((*parts, Part(start)), "<IMG_CONTEXT>", (end, "</s>"))


def control(library: Library, stop: tuple[str, ...]) -> dict[str, int]:
    added = library.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special or token.content in stop}


@given(question=TEXT, said=TEXT)
def test_a_prompt_with_nothing_to_hide_stays_what_it_is(form: Form, question: str, said: str) -> None:
    library = form[0]
    asked = prompt(form, question, said)
    hidden = SaidText(library, control(library, asked.stop))
    assert hidden.encode(asked.parts) == library.encode(asked.text).ids == form[1].encode_prompt(asked)


@given(question=TEXT, said=SPELLING)
def test_what_was_said_is_ordinary_text(form: Form, question: str, said: str) -> None:
    """As a tokenizer without control tokens encodes it, between the control tokens of the prompt."""
    library, tokenizer, start, end = form
    asked = prompt(form, question, said)
    reserved = control(library, asked.stop)
    ids = tokenizer.encode_prompt(asked)
    hidden = prompt(form, question, "nothing")
    assert [i for i in ids if i in reserved.values()] == [
        i for i in library.encode(hidden.text).ids if i in reserved.values()
    ]
    last = len(ids) - 1 - ids[::-1].index(reserved[end])
    before = max(place for place in range(last) if ids[place] in reserved.values())
    text = start.rpartition(">")[2] + said
    strips = library.get_added_tokens_decoder()[ids[before]].rstrip
    assert ids[before + 1 : last] == bare(library, reserved).encode(text.lstrip() if strips else text).ids


def bare(library: Library, reserved: dict[str, int]) -> Library:
    """Without control tokens, and in the middle of a text where a prefix is only for its start."""
    data = json.loads(library.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in reserved]
    data["post_processor"] = None
    if data["pre_tokenizer"] and data["pre_tokenizer"]["type"] == "Metaspace":
        data["normalizer"]["normalizers"].pop()
    return Library.from_str(json.dumps(data))


def test_half_a_surrogate_pair_is_refused(form: Form) -> None:
    with pytest.raises(RequestError, match="half a surrogate pair"):
        form[1].encode_prompt(prompt(form, "", "<img>\ud800"))
