"""The published conversation templates around one question."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import RequestError
from engine.families.base import Prompt
from engine.model_config import ModelConfig

PICTURE = "<image>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
CONTROL_TOKEN = re.compile(r"<\|[^<>|]*\|>")

SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_MESSAGE_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Template:
    """What stands before the system message, the question and the answer, and what ends each."""

    system: str
    user: str
    assistant: str
    separator: str
    stop: tuple[str, ...]
    """The separator, and the ends of sequence of the language models that come with the template."""
    system_message: str | None = SYSTEM_MESSAGE
    """None: no system turn."""
    numbers_pictures: bool = True
    """Several pictures before a question are called Image-1, Image-2 and so on."""


def _chatml(stop: tuple[str, ...], separator: str = "<|im_end|>", system_message: str = SYSTEM_MESSAGE) -> Template:
    return Template(
        "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", separator, stop, system_message
    )


INTERNVL2_5 = _chatml(("<|im_end|>", "<|endoftext|>", "</s>"), "<|im_end|>\n", SYSTEM_MESSAGE_2_5)


TEMPLATES = {
    "Hermes-2": _chatml(stop=("<|im_end|>", "<|endoftext|>")),
    "internlm2-chat": _chatml(stop=("<|im_end|>", "</s>")),
    "internvl2_5": INTERNVL2_5,
    # The chat template of transformers' converted checkpoints.
    "internvl": replace(INTERNVL2_5, system_message=None, numbers_pictures=False),
    "phi3-chat": Template(
        "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>", stop=("<|end|>", "<|endoftext|>", "</s>")
    ),
}


def render_prompt(config: ModelConfig, question: str, tiles_per_image: Sequence[int]) -> Prompt:
    """The published template around a question; `<image>` marks where a picture goes, else pictures go first."""
    template = TEMPLATES[config.prompt.template]
    _refuse_control_tokens(question, template)
    parts = _with_pictures(question, len(tiles_per_image), template).split(PICTURE)
    if len(parts) - 1 != len(tiles_per_image):
        raise RequestError(
            f"marks {PICTURE} in the question: {len(parts) - 1}, pictures: {len(tiles_per_image)}; "
            "give one mark per picture, or none"
        )
    text = parts[0]
    for tiles, part in zip(tiles_per_image, parts[1:], strict=True):
        text += IMAGE_START + IMAGE_TOKEN * (tiles * config.vision.tokens_per_tile()) + IMAGE_END + part
    turns = [template.user + text, template.assistant]
    message = template.system_message if config.prompt.system_message is None else config.prompt.system_message
    if message is not None:
        turns.insert(0, template.system + message)
    return Prompt(template.separator.join(turns), image_token=IMAGE_TOKEN, stop=template.stop)


def _with_pictures(question: str, pictures: int, template: Template) -> str:
    """The question with a mark for each picture, put before it when it has none, as in the published examples."""
    if PICTURE in question or not pictures:
        return question
    if pictures == 1 or not template.numbers_pictures:
        return f"{PICTURE}\n" * pictures + question
    return "".join(f"Image-{number}: {PICTURE}\n" for number in range(1, pictures + 1)) + question


def _refuse_control_tokens(question: str, template: Template) -> None:
    """A question must not close its own turn, open another one, or stand for a picture."""
    reserved = [token for token in (IMAGE_START, IMAGE_TOKEN, IMAGE_END, *template.stop) if token in question]
    reserved += CONTROL_TOKEN.findall(question)
    if reserved:
        raise RequestError(f"the question contains the control token {reserved[0]}; leave it out")
