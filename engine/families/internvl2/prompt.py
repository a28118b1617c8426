"""The published conversation templates around one question."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import RequestError
from engine.families.base import Part, Prompt, Turn
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
    separates_empty: bool = False
    """Whether the separator also follows an empty question or answer."""

    def turn(self, role: str, text: str, is_said: bool = False) -> list[Part]:
        """A question or an answer, to its end."""
        said = [Part(text, is_said), Part(self.separator)] if text or self.separates_empty else []
        return [Part(role), *said]


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
    "internvl": replace(INTERNVL2_5, system_message=None, numbers_pictures=False, separates_empty=True),
    "phi3-chat": Template(
        "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>", stop=("<|end|>", "<|endoftext|>", "</s>")
    ),
}


def render_prompt(
    config: ModelConfig,
    question: str,
    tiles_per_image: Sequence[int],
    history: Sequence[Turn] = (),
    system: str | None = None,
) -> Prompt:
    """The published template around a question and what was said before it; `<image>` marks where a picture goes, else
    pictures go first. system: the system message instead of the model's own.
    """
    template = TEMPLATES[config.prompt.template]
    questions = [*(turn.question for turn in history), question]
    _refuse_control_tokens("question", questions, template)
    _refuse_control_tokens("system message", [system or ""], template)
    pictures = len(tiles_per_image)
    marks = sum(question.count(PICTURE) for question in questions)
    if pictures and not marks:
        questions[0] = _picture_marks(pictures, template) + questions[0]
    elif marks != pictures:
        raise RequestError(
            f"marks {PICTURE} in the question: {marks}, pictures: {pictures}; give one mark per picture, or none"
        )
    tokens = (IMAGE_TOKEN * (tiles * config.vision.tokens_per_tile()) for tiles in tiles_per_image)
    places = (IMAGE_START + of_picture + IMAGE_END for of_picture in tokens)
    questions = [re.sub(PICTURE, lambda mark: next(places), question) for question in questions]
    own = template.system_message if config.prompt.system_message is None else config.prompt.system_message
    message = own if system is None else system
    parts = [] if message is None else [Part(template.system + message + template.separator)]
    for turn, asked in zip(history, questions, strict=False):
        parts += template.turn(template.user, asked) + template.turn(template.assistant, turn.answer, is_said=True)
    parts += [*template.turn(template.user, questions[-1]), Part(template.assistant)]
    return Prompt(tuple(parts), image_token=IMAGE_TOKEN, stop=(*template.stop, *config.prompt.stop))


def _picture_marks(pictures: int, template: Template) -> str:
    """Put before a conversation that has none, as in the published examples."""
    if pictures == 1 or not template.numbers_pictures:
        return f"{PICTURE}\n" * pictures
    return "".join(f"Image-{number}: {PICTURE}\n" for number in range(1, pictures + 1))


def _refuse_control_tokens(what: str, texts: Sequence[str], template: Template) -> None:
    """A text must not close its own turn, open another one, or stand for a picture."""
    for text in texts:
        reserved = [token for token in (IMAGE_START, IMAGE_TOKEN, IMAGE_END, *template.stop) if token in text]
        reserved += CONTROL_TOKEN.findall(text)
        if reserved:
            raise RequestError(f"the {what} contains the control token {reserved[0]}; leave it out")
