"""An answer as output tensors."""

from typing import Any

import numpy as np

from engine.runtime.answer import Answer
from engine.serve.triton.inquiry import Inquiry


def answer_outputs(answer: Answer, inquiry: Inquiry) -> dict[str, np.ndarray]:
    """Name -> tensor with its batch dimension; what was not computed, or not asked for, is left out.

    Of a streamed answer, all the text has gone before.
    """
    outputs = {
        "text_output": text("" if inquiry.stream else answer.text),
        "finish_reason": text(answer.finish_reason),
        "answered_by": text(answer.answered_by),
        "prompt_tokens": one(answer.prompt_tokens, np.int32),
        "generated_tokens": one(len(answer.token_ids), np.int32),
        "visual_tokens": one(answer.visual_tokens, np.int32),
        "visual_tokens_kept": one(answer.num_kept(), np.int32),
        "early_exit": one(answer.early_exit, bool),
    }
    if answer.decision is not None:
        values = {
            "decision_score": answer.decision.value,
            "confidence": answer.decision.confidence,
            "consistency": answer.decision.consistency,
        }
        outputs |= {name: one(value, np.float32) for name, value in values.items() if value is not None}
    if inquiry.return_log_probs:
        with np.errstate(divide="ignore"):
            outputs["log_probs"] = np.log(np.array([answer.probabilities])).astype(np.float32)
        outputs["token_ids"] = np.array([answer.token_ids], np.int64)
        if any(answer.top):
            outputs |= _top_tokens(answer)
    if inquiry.return_importance and answer.importance is not None and len(answer.importance):
        outputs["importance"] = np.asarray(answer.importance, np.float32)[None]
    return outputs


def _top_tokens(answer: Answer) -> dict[str, np.ndarray]:
    """[1,G,N] of the most probable tokens in each token's place; -1 and -inf where there are fewer."""
    shape = 1, len(answer.top), max(map(len, answer.top))
    tokens, logs = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    for place, top in enumerate(answer.top):
        tokens[0, place, : len(top)] = [one.token for one in top]
        with np.errstate(divide="ignore"):
            logs[0, place, : len(top)] = np.log([one.probability for one in top])
    return {"top_token_ids": tokens, "top_log_probs": logs}


def text(value: str) -> np.ndarray:
    return np.array([[value.encode()]], object)


def one(value: Any, kind: Any) -> np.ndarray:
    return np.array([[value]], kind)
