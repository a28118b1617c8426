"""The published conversation template around one question."""

from collections.abc import Sequence

from engine.families.base import Prompt, Turn
from engine.families.conversation import ClipForm, PictureForm, Template, render
from engine.model_config import ModelConfig

TEMPLATE = Template(
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_end|>\n",
    ("<|im_end|>", "<|endoftext|>"),
    PictureForm("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", behind=""),
    ClipForm("<|vision_start|>", "<|video_pad|>", "<|vision_end|>", behind=""),
    "You are a helpful assistant.",
    separates_empty=True,
)


def render_prompt(
    config: ModelConfig,
    question: str,
    visual_tokens: Sequence[int],
    history: Sequence[Turn] = (),
    system: str | None = None,
    clips: Sequence[Sequence[int]] = (),
) -> Prompt:
    """The published template around a question and what was said before it. Raises RequestError."""
    return render(TEMPLATE, question, visual_tokens, history, system, config.prompt.stop, clips)
