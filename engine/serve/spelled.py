"""An answer's tokens in JSON, as OpenAI's API has them."""

import math
from typing import Any

from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tokenizer import Tokenizer

NEVER = -9999.0
"""The log-probability of what has none: JSON has no infinity."""


def spell(answer: Answer, pipeline: SglPipeline) -> list[dict[str, Any]]:
    """Of every token, the one that ended the answer included: itself, and the most probable ones in its place."""
    model = pipeline.small if answer.answered_by is AnsweredBy.SMALL else pipeline.large
    return [
        _spell(model.tokenizer, token, probability, starts=not place)
        | {"top_logprobs": [_spell(model.tokenizer, one.token, one.probability, starts=not place) for one in top]}
        for place, (token, probability, top) in enumerate(
            zip(answer.token_ids, answer.probabilities, answer.top, strict=True)
        )
    ]


def _spell(tokenizer: Tokenizer, token: int, probability: float, starts: bool) -> dict[str, Any]:
    """starts: whether a text begins with it."""
    data = tokenizer.token_bytes(token, starts)
    if data is None:
        data = (tokenizer.special(token) or "").encode()
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": math.log(probability) if probability > 0 else NEVER,
        "bytes": list(data),
    }
