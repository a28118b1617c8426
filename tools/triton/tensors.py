"""Every input and output of the served models, named once: the configuration and the adapters read it here."""

from dataclasses import dataclass

ENGINE = "engine"
"""The engine directory, or the part of it that a model needs, inside the model's version directory."""


@dataclass(frozen=True)
class Tensor:
    """kind: Triton's data type; dims: without the batch dimension, which is 1 in every request."""

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


QUESTION = (
    Tensor("text_input", "STRING", optional=False),
    Tensor("history", "STRING", (-1,)),
    Tensor("image_input", "UINT8", (-1, -1, -1, 3)),
    Tensor("image_bytes_input", "STRING", (-1,)),
    Tensor("image_url_input", "STRING", (-1,)),
)
SAMPLING = (
    Tensor("max_tokens", "INT32"),
    Tensor("temperature", "FP32"),
    Tensor("top_p", "FP32"),
    Tensor("top_k", "INT32"),
    Tensor("seed", "UINT64"),
    Tensor("stop_words", "STRING", (-1,)),
    Tensor("return_log_probs", "BOOL"),
)
STREAM = Tensor("stream", "BOOL")
IMPORTANCE = Tensor("importance", "FP32", (-1,))
EXIT = Tensor("exit_threshold", "FP32")
PRUNING = (Tensor("retention_ratio", "FP32"), Tensor("prune_layer", "INT32"))

ANSWER = (
    Tensor("text_output", "STRING"),
    Tensor("finish_reason", "STRING"),
    Tensor("answered_by", "STRING"),
    Tensor("prompt_tokens", "INT32"),
    Tensor("generated_tokens", "INT32"),
    Tensor("visual_tokens", "INT32"),
    Tensor("visual_tokens_kept", "INT32"),
    Tensor("token_ids", "INT64", (-1,)),
    Tensor("log_probs", "FP32", (-1,)),
)
DECISION = (
    Tensor("early_exit", "BOOL"),
    Tensor("decision_score", "FP32"),
    Tensor("confidence", "FP32"),
    Tensor("consistency", "FP32"),
)
ERROR = Tensor("error", "STRING")
"""Why an answer broke off after its first piece: to a model that called this one, an error would then be lost."""


@dataclass(frozen=True)
class Model:
    """decoupled: answers may come in pieces. batched: requests that arrive together run as one batch."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool
    batched: bool


SMALL = Model(
    "small_vlm",
    (*QUESTION, *SAMPLING, EXIT),
    (*ANSWER, *DECISION, IMPORTANCE),
    decoupled=False,
    batched=True,
)
LARGE = Model(
    "large_vlm",
    (*QUESTION, *SAMPLING, IMPORTANCE, *PRUNING, STREAM),
    (*ANSWER, ERROR),
    decoupled=True,
    batched=True,
)
SGL = Model(
    "sgl",
    (*QUESTION, *SAMPLING, EXIT, *PRUNING, Tensor("return_importance", "BOOL"), STREAM),
    (*ANSWER, *DECISION, IMPORTANCE),
    decoupled=True,
    batched=False,
)
MODELS = (SMALL, LARGE, SGL)
