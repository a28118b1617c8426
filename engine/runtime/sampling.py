"""From logits to the next token, and how sure the model was of it.

Formulas are written once, for NumPy and for torch. On a GPU nothing here waits for a result but `read`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import SamplingConfig
from engine.errors import EngineError
from engine.runtime.arrays import Array, array_namespace, device, is_host
from engine.runtime.form import Form

EXP_FLOOR = -104.0
"""float32 exp is 0 below it; clipping there keeps logits of -inf out of 0 * -inf."""


@dataclass(frozen=True)
class TopToken:
    """One of the most probable tokens."""

    token: int
    probability: float


@dataclass(frozen=True)
class Choice:
    """A token with its probability and the entropy of all tokens, both of the model's softmax at temperature 1.

    top: the most probable tokens by that softmax, as many as were asked for; of equal ones, lower ids come first.
    """

    token: int
    probability: float
    entropy: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """What a sampler draws from: token ids [N] and their probabilities [N], which sum to 1."""

    tokens: Array
    probabilities: Array


class Sampler:
    """Chooses the tokens of one request; it draws from its own generator, so batch mates do not change the answer."""

    def __init__(self, config: SamplingConfig, form: Form | None = None) -> None:
        """form: what may be chosen; whoever says the tokens tells it."""
        self._config, self._form = config, form or Form()
        self._bits = np.random.PCG64(config.seed)
        self._generator = np.random.Generator(self._bits)

    def choose(self, logits: Array) -> Array:
        """[vocab] -> float64 [4 + 2N], a choice for `read`: the token, the logits' peak, log-probability, entropy, and
        where they are wanted N top tokens and their log-probabilities."""
        xp = array_namespace(logits)
        logits = self._form.mask(logits)
        peak = xp.max(logits)
        with np.errstate(invalid="ignore"):  # `read` refuses what is not finite
            shifted = logits - peak
            token = self._draw(logits) if self._config.temperature else xp.reshape(xp.argmax(logits), (1,))
            clipped = xp.maximum(shifted, xp.full_like(peak, EXP_FLOOR))
            weights = xp.exp(clipped)
            total = xp.sum(weights, dtype=xp.float64)
            log_probability = xp.take(shifted, token, axis=0) - xp.log(total)
            entropy = xp.log(total) - xp.vecdot(weights, clipped) / total
            numbers = [xp.reshape(number, (1,)) for number in (token, peak, log_probability, entropy)]
            if self._config.top_logprobs:
                top = _most_probable(logits, self._config.top_logprobs)
                numbers += [top, xp.take(shifted, top, axis=0) - xp.log(total)]
        return xp.concat([xp.astype(number, xp.float64) for number in numbers])

    def choose_each(self, logits: Array, draft: Sequence[int]) -> Array:
        """[R,vocab] -> float64 [R,4 + 2N]: choices behind a prompt and behind each token of a draft.

        A draft's token is accepted where it is the one that is chosen anyway: drawn, with the probability that the
        model gives it; and what is drawn where it is another has the distribution of the others (speculative sampling
        from a draft that is certain of itself). So the answer is the one that would be drawn without a draft.
        """
        choices = [self.choose(logits[0])]
        for row, token in zip(logits[1:], draft, strict=True):
            self._form.take(token)
            choices.append(self.choose(row))
        self._form.take_back(len(draft))
        return array_namespace(logits).stack(choices)

    def take_back(self, choices: int) -> None:
        """The last ones were not used: what they drew is drawn again."""
        if self._config.temperature:
            self._bits.advance(2**128 - choices)

    def skip(self, choices: int) -> None:
        """Go on as if so many had been made."""
        if self._config.temperature:
            self._bits.advance(choices)

    def _draw(self, logits: Array) -> Array:
        """[vocab] -> [1]"""
        xp = array_namespace(logits)
        drawn = candidates(logits, self._config)
        cumulative = xp.cumulative_sum(drawn.probabilities, dtype=xp.float64)
        index = xp.searchsorted(cumulative, self._generator.random() * cumulative[-1:], side="right")
        # the product may round up to the last sum, which lies behind every candidate
        return xp.take(drawn.tokens, xp.clip(index, max=len(cumulative) - 1), axis=0)


def read(choice: Sequence[float]) -> Choice:
    """What `Sampler.choose` found, on the host. Raises EngineError when the logits were not numbers."""
    token, peak, log_probability, entropy, *top = choice
    _check_peak(peak)
    tokens, logs = top[: len(top) // 2], top[len(top) // 2 :]
    # -inf is what a form does not let come next
    tops = (TopToken(int(token), math.exp(log)) for token, log in zip(tokens, logs, strict=True) if log > -math.inf)
    return Choice(int(token), math.exp(log_probability), max(0.0, entropy), tuple(tops))


def candidates(logits: Array, sampling: SamplingConfig) -> Candidates:
    """[vocab] -> what temperature, then top-k, then top-p leave; of equal logits at top-p's edge the lower ids stay."""
    xp = array_namespace(logits)
    tokens = xp.arange(len(logits), device=device(logits))
    if 0 < sampling.top_k < len(logits):
        # logits that equal the k-th stay; temperature keeps the order, so it can wait until few are left
        tokens, logits = _keep(logits >= _largest(logits, sampling.top_k), tokens, logits, -math.inf)
    temperature = max(sampling.temperature, float(np.finfo(np.float32).tiny))  # never 0 / 0
    with np.errstate(over="ignore", invalid="ignore"):
        weights = xp.exp((logits - xp.max(logits)) / temperature)
    probabilities = _normalised(weights)
    if sampling.top_p < 1:
        # all tokens below it together weigh less than 1 - top_p, so they go; only the rest needs sorting
        likely = probabilities >= (1 - sampling.top_p) / len(tokens)
        tokens, probabilities = _keep(likely, tokens, probabilities, 0.0)
        order = xp.argsort(-probabilities, stable=True)  # NumPy has no `descending`
        tokens, probabilities = (xp.take(values, order, axis=0) for values in (tokens, probabilities))
        heavier = xp.cumulative_sum(probabilities, dtype=xp.float64) - probabilities
        tokens, probabilities = _keep(heavier < sampling.top_p, tokens, probabilities, 0.0)
        probabilities = _normalised(probabilities)
    return Candidates(tokens, probabilities)


def log_probabilities(logits: Array, tokens: np.ndarray, form: Form) -> Array:
    """[G,vocab], [G] -> float64 [G,2], for `read_probabilities`: of each given token, the peak of the logits and the
    log-probability. form: that the tokens have."""
    assert len(logits) == len(tokens), (len(logits), len(tokens))
    xp = array_namespace(logits)
    found = []
    form.restart()
    for row, token in zip(logits, tokens.tolist(), strict=True):  # a vocabulary fits into the cache, all of them do not
        row = form.mask(row)
        peak = xp.max(row)
        with np.errstate(invalid="ignore"):
            total = xp.sum(xp.exp(row - peak), dtype=xp.float64)
            found += [xp.astype(peak, xp.float64), xp.astype(row[token] - peak, xp.float64) - xp.log(total)]
        form.take(token)
    return xp.reshape(xp.stack(found), (-1, 2))


def read_probabilities(found: np.ndarray) -> np.ndarray:
    """What `log_probabilities` found, on the host -> float64 [G]. Raises EngineError when logits were no numbers."""
    peaks, logs = found.T
    for peak in peaks:
        _check_peak(peak)
    return np.exp(logs)


def _keep(kept: Array, tokens: Array, values: Array, nothing: float) -> tuple[Array, Array]:
    """[N] bool, [N], [N] -> the tokens that stay with their values.

    To count them one would wait for a GPU; there all stay, with values that are worth nothing.
    """
    if is_host(kept):
        return tokens[kept], values[kept]
    xp = array_namespace(values)
    return tokens, xp.where(kept, values, xp.full_like(values, nothing))


def _most_probable(logits: Array, count: int) -> Array:
    """[vocab] -> [N]: the tokens of the largest logits, largest first."""
    xp = array_namespace(logits)
    count = min(count, len(logits))
    if not is_host(logits):
        return xp.argsort(-logits, stable=True)[:count]
    likely = np.flatnonzero(~(logits < _largest(logits, count)))  # also where none is a number
    return likely[np.argsort(-logits[likely], stable=True)][:count]


def _largest(values: Array, rank: int) -> Array:
    """[N] -> []: the largest, the second largest, ..."""
    place = len(values) - rank
    # The array API has no partition, which on the host is several times faster than a sort.
    return (np.partition(values, place) if is_host(values) else array_namespace(values).sort(values))[place]


def _normalised(weights: Array) -> Array:
    xp = array_namespace(weights)
    return weights / xp.astype(xp.sum(weights, dtype=xp.float64), weights.dtype)


def _check_peak(peak: float) -> None:
    """Raises EngineError for the largest logit that there is none."""
    if not math.isfinite(peak):
        raise EngineError(f"the largest logit is {peak}; the model's weights are broken, so check its checkpoint")
