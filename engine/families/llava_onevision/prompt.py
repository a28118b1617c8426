"""The published conversation templates around one question."""

from collections.abc import Sequence
from dataclasses import replace

from engine.families.base import Prompt, Turn
from engine.families.conversation import CLIP, PICTURE, ClipForm, PictureForm, Template, render
from engine.model_config import ModelConfig

DEFAULT, ONE_LINE = "llava_onevision", "llava_onevision, one line"
"""Checkpoints without a chat template have the first."""
PUBLISHED_CODE = "conv_qwen"
"""Of the code that trained the models."""
_CONTENT = (
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>%(behind)s' }}{% endfor %}{# Render all video then #}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'video') %}{{ '<video>%(behind)s' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ %(before)scontent['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ %(before)scontent['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
)


def _chat_template(role_end: str, behind: str, before: str, end: str) -> str:
    content = _CONTENT.replace("%(behind)s", behind).replace("%(before)s", before)
    return (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '"
        + role_end
        + "'}}"
        + content
        + end
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


CHAT_TEMPLATES = {
    DEFAULT: _chat_template("\\n", "\\n", "", "{{'<|im_end|>' + '\\n'}}"),
    ONE_LINE: _chat_template(" ", "", "'\\n' + ", "{{'<|im_end|>'}}"),
}
"""That checkpoints are published with: of transformers' conversion, and one whose turns are on one line."""
_TURNS = Template(
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_end|>\n",
    ("<|im_end|>",),
    PictureForm("", PICTURE, ""),
    ClipForm("", CLIP, ""),
)
TEMPLATES = {
    DEFAULT: replace(_TURNS, separates_empty=True),
    ONE_LINE: Template(
        "<|im_start|>system \n",
        "<|im_start|>user ",
        "<|im_start|>assistant\n",
        "<|im_end|>",
        ("<|im_end|>",),
        PictureForm("", PICTURE, "", behind=""),
        ClipForm("", CLIP, "", behind=""),
        separates_empty=True,
        opening="\n",
        said_before="<|im_start|>assistant \n",
    ),
    PUBLISHED_CODE: replace(_TURNS, system_message="You are a helpful assistant."),
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
    return render(
        TEMPLATES[config.prompt.template], question, visual_tokens, history, system, config.prompt.stop, clips
    )
