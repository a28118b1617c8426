"""Every input and output of the served model, named once: the configuration and the adapter read it here."""

from dataclasses import dataclass

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


INPUTS = (
    Tensor("text_input", "STRING", optional=False),
    Tensor("history", "STRING", (-1,)),
    Tensor("image_input", "UINT8", (-1, -1, -1, 3)),
    Tensor("image_bytes_input", "STRING", (-1,)),
    Tensor("image_url_input", "STRING", (-1,)),
    Tensor("max_tokens", "INT32"),
    Tensor("temperature", "FP32"),
    Tensor("top_p", "FP32"),
    Tensor("top_k", "INT32"),
    Tensor("seed", "UINT64"),
    Tensor("stop_words", "STRING", (-1,)),
    Tensor("exit_threshold", "FP32"),
    Tensor("retention_ratio", "FP32"),
    Tensor("prune_layer", "INT32"),
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
    Tensor("early_exit", "BOOL"),
    Tensor("decision_score", "FP32"),
    Tensor("confidence", "FP32"),
    Tensor("consistency", "FP32"),
    Tensor("importance", "FP32", (-1,)),
)
