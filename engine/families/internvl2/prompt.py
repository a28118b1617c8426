"""The published conversation templates around one question."""

from collections.abc import Sequence
from dataclasses import replace

from engine.families.base import Prompt, Turn
from engine.families.conversation import ClipForm, PictureForm, Template, render
from engine.model_config import ModelConfig

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
NUMBERED = PictureForm(IMAGE_START, IMAGE_TOKEN, IMAGE_END, is_numbered=True)
CLIP = ClipForm(IMAGE_START, IMAGE_TOKEN, IMAGE_END, frame="Frame{}: ")
"""As the published evaluation on clips has it."""

SYSTEM_MESSAGE = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_MESSAGE_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def _chatml(stop: tuple[str, ...], separator: str = "<|im_end|>", system_message: str = SYSTEM_MESSAGE) -> Template:
    return Template(
        "<|im_start|>system\n",
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        separator,
        stop,
        NUMBERED,
        CLIP,
        system_message,
    )


INTERNVL2_5 = _chatml(("<|im_end|>", "<|endoftext|>", "</s>"), "<|im_end|>\n", SYSTEM_MESSAGE_2_5)


TEMPLATES = {
    "Hermes-2": _chatml(stop=("<|im_end|>", "<|endoftext|>")),
    "internlm2-chat": _chatml(stop=("<|im_end|>", "</s>")),
    "internvl2_5": INTERNVL2_5,
    # The chat template of transformers' converted checkpoints.
    "internvl": replace(
        INTERNVL2_5, system_message=None, picture=replace(NUMBERED, is_numbered=False), separates_empty=True
    ),
    "phi3-chat": Template(
        "<|system|>\n",
        "<|user|>\n",
        "<|assistant|>\n",
        "<|end|>",
        ("<|end|>", "<|endoftext|>", "</s>"),
        NUMBERED,
        CLIP,
        SYSTEM_MESSAGE,
    ),
}


def render_prompt(
    config: ModelConfig,
    question: str,
    visual_tokens: Sequence[int],
    history: Sequence[Turn] = (),
    system: str | None = None,
    clips: Sequence[Sequence[int]] = (),
) -> Prompt:
    """The published template around a question and what was said before it. Raises RequestError."""
    template = TEMPLATES[config.prompt.template]
    if config.prompt.system_message is not None:
        template = replace(template, system_message=config.prompt.system_message)
    return render(template, question, visual_tokens, history, system, config.prompt.stop, clips)
