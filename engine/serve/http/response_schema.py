"""Answers of the chat completions API, as OpenAI publishes them; what is ours is under `sgl`."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sgl-engine"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Decision(BaseModel):
    """What was compared with the threshold, and what it came to."""

    criterion: str
    value: float
    exit_threshold: float
    confidence: float
    consistency: float | None


class ClipFrames(BaseModel):
    """What of a clip the model that answered was shown."""

    frames: Sequence[int]
    """Their numbers in the clip."""
    seconds: Sequence[float]
    """When each is seen, from the first frame of the clip on."""
    kept: list[int]
    """Visual tokens, of each frame or each group of frames that became tokens together."""


class Report(BaseModel):
    """How an answer came about."""

    answered_by: Literal["small", "large"]
    early_exit: bool
    small_text: str | None
    decision: Decision | None
    visual_tokens: int
    visual_tokens_kept: int
    average_retention: float
    prune_layer: int | None
    retention_ratio: float | None
    budget: str | None
    tiles: int
    tiles_skipped: int
    clips: list[ClipFrames]
    drafted_tokens: int
    accepted_tokens: int
    speculated_tokens: int
    speculated_accepted_tokens: int
    reuse: dict[str, int]
    seconds: dict[str, float]
    kept: list[int] | None = None
    importance: list[float] | None = None
    boxes: list[list[float]] | None = None
    """Of every visual token: x0 y0 x1 y1 in its picture, whose sides are 1."""
    pictures: list[int] | None = None
    """Of every visual token: which picture or clip it is of, counted pictures first."""
    times: list[list[float]] | None = None
    """Of every visual token: from when to when it is seen in its clip, which lasts 1."""


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    sgl: Report


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    sgl: Report | None = None
