"""Every input and output of the served model, named once: the configuration and the adapter read it here."""

from dataclasses import dataclass

from engine.options import BY_NAME, OPTIONS, Option

MODEL = "sgl"
ENGINE = "engine"
"""The engine directory inside the model's version directory."""
EMPTY = "the question is empty; ask something"
"""What a question without a word is told, before anything else about it is looked at."""


@dataclass(frozen=True)
class Tensor:
    """kind: Triton's data type; dims: without the batch dimension, which is 1 in every request."""

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


def option_input(option: Option) -> Tensor:
    """Of an option of a question."""
    is_long = option.bound is not None and option.bound.holds(1 << 31)
    kinds = {bool: "BOOL", float: "FP32", int: "UINT64" if is_long else "INT32"}
    length = 1 if option.length is None else option.length
    return Tensor(option.input, kinds.get(option.item, "STRING"), (length or -1,))


def input_name(setting: str) -> str:
    """What a request calls a setting."""
    return BY_NAME[setting].input if setting in BY_NAME else setting


INPUTS = (
    Tensor("text_input", "STRING", optional=False),
    Tensor("history", "STRING", (-1,)),
    Tensor("image_input", "UINT8", (-1, -1, -1, 3)),
    Tensor("image_bytes_input", "STRING", (-1,)),
    Tensor("image_url_input", "STRING", (-1,)),
    Tensor("video_bytes_input", "STRING", (-1,)),
    Tensor("video_url_input", "STRING", (-1,)),
    *map(option_input, OPTIONS),
    Tensor("timeout", "FP32"),
    Tensor("stream", "BOOL"),
    Tensor("return_importance", "BOOL"),
    Tensor("return_log_probs", "BOOL"),
)
OUTPUTS = (
    Tensor("text_output", "STRING"),
    Tensor("finish_reason", "STRING"),
    Tensor("answered_by", "STRING"),
    Tensor("prompt_tokens", "INT32"),
    Tensor("generated_tokens", "INT32"),
    Tensor("visual_tokens", "INT32"),
    Tensor("visual_tokens_kept", "INT32"),
    Tensor("token_ids", "INT64", (-1,)),
    Tensor("log_probs", "FP32", (-1,)),
    Tensor("top_token_ids", "INT64", (-1, -1)),
    Tensor("top_log_probs", "FP32", (-1, -1)),
    Tensor("early_exit", "BOOL"),
    Tensor("decision_score", "FP32"),
    Tensor("confidence", "FP32"),
    Tensor("consistency", "FP32"),
    Tensor("importance", "FP32", (-1,)),
)
