"""Prompts: the published templates, where pictures go, and questions that would break out of their turn."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.families import Prompt, Turn
from engine.families.internvl2 import prompt as internvl2_prompt
from engine.model_config import ModelConfig, PromptConfig
from tests.families.fixtures import read_size

SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
NEWER_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
CHATML = "<|im_start|>system\n{}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
PROMPTS = {
    "Hermes-2": CHATML.format(SYSTEM),
    "internlm2-chat": CHATML.format(SYSTEM),
    "phi3-chat": f"<|system|>\n{SYSTEM}<|end|><|user|>\nHi<|end|><|assistant|>\n",
    "internvl": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "internvl2_5": CHATML.format(NEWER_SYSTEM).replace("<|im_end|>", "<|im_end|>\n"),
}


def config_of(template: str, system_message: str | None = None) -> ModelConfig:
    return replace(read_size("2b"), prompt=PromptConfig(template, system_message))


def render_prompt(
    config: ModelConfig, question: str, tiles: list[int], history: Sequence[Turn] = (), system: str | None = None
) -> Prompt:
    """Pictures of so many tiles."""
    return internvl2_prompt.render_prompt(config, question, [256 * count for count in tiles], history, system)


def picture(tiles: int) -> str:
    return "<img>" + "<IMG_CONTEXT>" * (256 * tiles) + "</img>"


@pytest.mark.parametrize("template", PROMPTS)
def test_templates(template: str) -> None:
    prompt = render_prompt(config_of(template), "Hi", [])
    assert prompt.text == PROMPTS[template]
    assert prompt.stop[0] == ("<|end|>" if template == "phi3-chat" else "<|im_end|>")


@pytest.mark.parametrize("message", ["Be brief.", ""])
def test_system_message_overrides(message: str) -> None:
    assert render_prompt(config_of("Hermes-2", message), "Hi", []).text == CHATML.format(message)


@pytest.mark.parametrize(
    ("question", "tiles", "expected"),
    [
        ("Hi", [3], f"{picture(3)}\nHi"),
        ("Hi", [1, 13], f"Image-1: {picture(1)}\nImage-2: {picture(13)}\nHi"),
        ("<image>\nHi", [1], f"{picture(1)}\nHi"),
        ("Is <image> like <image>?", [2, 1], f"Is {picture(2)} like {picture(1)}?"),
        ("<image><image>", [1, 2], picture(1) + picture(2)),
        ("", [1], f"{picture(1)}\n"),
    ],
)
def test_pictures(question: str, tiles: list[int], expected: str) -> None:
    prompt = render_prompt(config_of("Hermes-2"), question, tiles)
    assert prompt.text == CHATML.format(SYSTEM).replace("Hi", expected)
    assert prompt.text.count(prompt.image_token) == 256 * sum(tiles)


HISTORY = (Turn("What is it?", "A dog."), Turn("Where?", "In a park."))
CONVERSATIONS = {
    "Hermes-2": f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n{{}}What is it?<|im_end|>"
    "<|im_start|>assistant\nA dog.<|im_end|><|im_start|>user\nWhere?<|im_end|>"
    "<|im_start|>assistant\nIn a park.<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "phi3-chat": f"<|system|>\n{SYSTEM}<|end|><|user|>\n{{}}What is it?<|end|><|assistant|>\nA dog.<|end|>"
    "<|user|>\nWhere?<|end|><|assistant|>\nIn a park.<|end|><|user|>\nHi<|end|><|assistant|>\n",
    "internvl2_5": f"<|im_start|>system\n{NEWER_SYSTEM}<|im_end|>\n<|im_start|>user\n{{}}What is it?<|im_end|>\n"
    "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    "In a park.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
}
"""As the published `chat` renders what it was given as history."""


@pytest.mark.parametrize("template", CONVERSATIONS)
def test_what_was_said_before(template: str) -> None:
    """Pictures belong to the first question."""
    text = render_prompt(config_of(template), "Hi", [2], HISTORY).text
    assert text == CONVERSATIONS[template].format(f"{picture(2)}\n")
    assert render_prompt(config_of(template), "Hi", [], HISTORY).text == CONVERSATIONS[template].format("")


def test_each_question_may_mark_its_own_pictures() -> None:
    history = (Turn("<image> What?", "A dog."), Turn("And?", "Nothing."))
    text = render_prompt(config_of("Hermes-2"), "Like <image>?", [1, 2], history).text
    assert f"user\n{picture(1)} What?<" in text and f"user\nLike {picture(2)}?<" in text
    with pytest.raises(RequestError, match="in the question: 2, pictures: 1;"):
        render_prompt(config_of("Hermes-2"), "Like <image>?", [1], history)


EMPTY = (Turn("", "A dog."), Turn("Where?", ""), Turn("", ""))
CONVERSATIONS_WITH_GAPS = {
    "Hermes-2": f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n<|im_start|>assistant\nA dog.<|im_end|>"
    "<|im_start|>user\nWhere?<|im_end|><|im_start|>assistant\n<|im_start|>user\n<|im_start|>assistant\n"
    "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n",
    "phi3-chat": f"<|system|>\n{SYSTEM}<|end|><|user|>\n<|assistant|>\nA dog.<|end|><|user|>\nWhere?<|end|>"
    "<|assistant|>\n<|user|>\n<|assistant|>\n<|user|>\nHi<|end|><|assistant|>\n",
    "internvl2_5": f"<|im_start|>system\n{NEWER_SYSTEM}<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\nA dog."
    "<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n<|im_start|>user\n"
    "<|im_start|>assistant\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "internvl": "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nWhere?"
    "<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
}
"""As the published `get_prompt` renders messages that are empty, and transformers' chat template for `internvl`."""


@pytest.mark.parametrize("template", CONVERSATIONS_WITH_GAPS)
def test_an_empty_question_or_answer(template: str) -> None:
    assert render_prompt(config_of(template), "Hi", [], EMPTY).text == CONVERSATIONS_WITH_GAPS[template]


@pytest.mark.parametrize("template", PROMPTS)
@pytest.mark.parametrize("said", ["<img>", "a</s>", "<|im_end|>b", "<IMG_CONTEXT><image>", "<|end|>"])
def test_an_answer_is_told_from_the_template(template: str, said: str) -> None:
    """Whatever it spells: pictures are marked in questions only."""
    prompt = render_prompt(config_of(template), "Hi", [1], [Turn("What?", said)])
    assert [part.text for part in prompt.parts if part.is_said] == [said]
    silent = render_prompt(config_of(template), "Hi", [1], [Turn("What?", "Well.")])
    assert [part for part in prompt.parts if not part.is_said] == [part for part in silent.parts if not part.is_said]


@pytest.mark.parametrize("turns", [(Turn("a<|im_end|>", ""),), (Turn("", "b"), Turn("c<|im_end|>", "d"))])
def test_an_earlier_question_stays_in_its_turn(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(RequestError, match=r"^the question contains the control token <\|im_end\|>; leave it out$"):
        render_prompt(config_of("Hermes-2"), "Hi", [], turns)


@pytest.mark.parametrize(("question", "tiles"), [("<image>", []), ("<image>", [1, 1]), ("<image> <image>", [1])])
def test_marks_must_match_pictures(question: str, tiles: list[int]) -> None:
    with pytest.raises(RequestError, match=rf"question: {question.count('<image>')}, pictures: {len(tiles)};"):
        render_prompt(config_of("Hermes-2"), question, tiles)


@pytest.mark.parametrize("template", PROMPTS)
@pytest.mark.parametrize(
    "token",
    [
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        "<|im_start|>",
        "<|im_end|>",
        "<|end|>",
        "<|user|>",
        "<|endoftext|>",
        "<|eot_id|>",
    ],
)
def test_control_tokens_are_refused(template: str, token: str) -> None:
    with pytest.raises(RequestError) as error:
        render_prompt(config_of(template), f"Hi{token}there", [1])
    assert token in str(error.value)


PIECES = [
    "<image>",
    "<|im_",
    "start|>",
    "<|",
    "|>",
    "<img",
    "<IMG_",
    "CONTEXT>",
    ">",
    "<",
    "</s>",
    "a",
    " ",
    "\n",
    "图",
]


@given(
    question=st.lists(st.sampled_from(PIECES), max_size=8).map("".join), tiles=st.lists(st.integers(1, 3), max_size=3)
)
def test_a_question_cannot_add_turns_or_visual_tokens(question: str, tiles: list[int]) -> None:
    try:
        prompt = render_prompt(config_of("internlm2-chat"), question, tiles)
    except RequestError:
        return
    assert prompt.text.count("<IMG_CONTEXT>") == 256 * sum(tiles)
    assert prompt.text.count("<img>") == prompt.text.count("</img>") == len(tiles)
    assert prompt.text.count("<|im_start|>") == 3
    assert prompt.text.count("<|im_end|>") == (2 if question or tiles else 1), "nothing ends an empty question"


def test_ordinary_markup_is_allowed() -> None:
    question = "Where is <ref>the dog</ref>, and what does <b> | <s> mean?"
    assert question in render_prompt(config_of("Hermes-2"), question, []).text


@pytest.mark.parametrize("template", CONVERSATIONS)
def test_another_system_message(template: str) -> None:
    """Where the model's own would stand; an empty one is one."""
    for message in ("Be brief.", ""):
        own = NEWER_SYSTEM if template == "internvl2_5" else SYSTEM
        expected = CONVERSATIONS[template].format("").replace(own, message)
        assert render_prompt(config_of(template), "Hi", [], HISTORY, message).text == expected
    with pytest.raises(RequestError, match=r"the system message contains the control token <\|im_end\|>"):
        render_prompt(config_of(template), "Hi", [], system="Hi<|im_end|>")
