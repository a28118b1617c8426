"""From logits to the next token, and how sure the model was of it."""

import math
from dataclasses import dataclass

import numpy as np

from engine.config import SamplingConfig
from engine.errors import EngineError

EXP_FLOOR = np.float32(-104)
"""float32 exp is 0 below it; clipping there keeps logits of -inf out of 0 * -inf."""


@dataclass(frozen=True)
class Choice:
    """A token with its probability and the entropy of all tokens, both of the model's softmax at temperature 1."""

    token: int
    probability: float
    entropy: float


@dataclass(frozen=True)
class Candidates:
    """What a sampler draws from: token ids [N] and their probabilities [N], which sum to 1."""

    tokens: np.ndarray
    probabilities: np.ndarray


class Sampler:
    """Chooses the tokens of one request; it draws from its own generator, so batch mates do not change the answer."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._generator = np.random.Generator(np.random.PCG64(config.seed))

    def choose(self, logits: np.ndarray) -> Choice:
        """[vocab] -> the next token. Raises EngineError when the logits are not numbers."""
        shifted = _shift(logits)
        token = self._draw(logits) if self._config.temperature else int(np.argmax(logits))
        clipped = np.maximum(shifted, EXP_FLOOR)
        weights = np.exp(clipped)
        total = float(weights.sum(dtype=np.float64))
        entropy = math.log(total) - float(np.dot(weights, clipped)) / total
        return Choice(token, math.exp(float(shifted[token]) - math.log(total)), max(0.0, entropy))

    def _draw(self, logits: np.ndarray) -> int:
        drawn = candidates(logits, self._config)
        cumulative = np.cumsum(drawn.probabilities, dtype=np.float64)
        index = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        # the product may round up to the last sum, which lies behind every candidate
        return int(drawn.tokens[min(int(index), len(cumulative) - 1)])


def candidates(logits: np.ndarray, sampling: SamplingConfig) -> Candidates:
    """[vocab] -> what temperature, then top-k, then top-p leave; of equal logits at top-p's edge the lower ids stay."""
    tokens = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        # logits that equal the k-th stay; temperature keeps the order, so it can wait until few are left
        tokens = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
        logits = logits[tokens]
    temperature = max(np.float32(sampling.temperature), np.finfo(np.float32).tiny)  # never 0 / 0
    with np.errstate(over="ignore"):
        weights = np.exp(_shift(logits) / temperature)
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        # all tokens below it together weigh less than 1 - top_p, so they go; only the rest needs sorting
        likely = np.flatnonzero(probabilities >= (1 - sampling.top_p) / len(tokens))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        heavier = np.cumsum(probabilities[order], dtype=np.float64) - probabilities[order]
        nucleus = order[heavier < sampling.top_p]
        tokens, probabilities = tokens[nucleus], probabilities[nucleus] / probabilities[nucleus].sum()
    return Candidates(tokens, probabilities)


def token_probabilities(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[G,vocab], [G] -> float64 [G]: the softmax probability of each given token."""
    assert len(logits) == len(tokens), (len(logits), len(tokens))
    shifted = (_shift(row) for row in logits)  # row by row: a vocabulary fits into the cache, all of them do not
    sums = ((row, float(np.exp(row).sum(dtype=np.float64))) for row in shifted)
    return np.array(
        [math.exp(float(row[token]) - math.log(total)) for (row, total), token in zip(sums, tokens, strict=True)]
    )


def _shift(logits: np.ndarray) -> np.ndarray:
    """[N] -> [N] with maximum 0. Raises EngineError when there is none."""
    peak = logits.max()
    if not np.isfinite(peak):
        raise EngineError(f"the largest logit is {peak}; the model's weights are broken, so check its checkpoint")
    return logits - peak
