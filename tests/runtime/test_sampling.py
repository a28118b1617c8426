"""Sampling against transformers' warpers and torch's float64 softmax."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.config import SamplingConfig
from engine.errors import EngineError
from engine.runtime.arrays import Array, to_host
from engine.runtime.form import Form
from engine.runtime.sampling import Choice, Sampler, candidates, log_probabilities, read, read_probabilities

LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-20, 20, width=32))
VOCAB = 300


def random_logits(seed: int, size: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def choose(sampler: Sampler, logits: np.ndarray) -> Choice:
    return read(to_host(sampler.choose(logits)).tolist())


def warped(logits: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """[vocab] -> [vocab]: the distribution that transformers would sample from."""
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


def drawn_from(logits: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """[vocab] -> [vocab]: the distribution that we sample from."""
    drawn = candidates(logits, sampling)
    distribution = np.zeros(len(logits))
    distribution[drawn.tokens] = drawn.probabilities
    return distribution


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, VOCAB, VOCAB + 5])
@pytest.mark.parametrize("top_p", [1e-9, 0.31, 0.9, 0.999, 1.0])
def test_the_distribution_is_that_of_the_warpers(temperature: float, top_k: int, top_p: float) -> None:
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(3):
        logits = random_logits(seed)
        np.testing.assert_allclose(drawn_from(logits, sampling), warped(logits, sampling), rtol=2e-5, atol=1e-7)


def test_equal_logits_at_the_edge_of_top_k_all_stay() -> None:
    logits = np.array([1, 3, 2, 2, 2, -1], np.float32)
    sampling = SamplingConfig(temperature=1.0, top_k=2)
    assert candidates(logits, sampling).tokens.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(drawn_from(logits, sampling), warped(logits, sampling), rtol=1e-6)


def test_equal_logits_at_the_edge_of_top_p_keep_the_lower_ids() -> None:
    drawn = candidates(np.zeros(10, np.float32), SamplingConfig(temperature=1.0, top_p=0.35))
    assert sorted(drawn.tokens.tolist()) == [0, 1, 2, 3]


@given(LOGITS, st.floats(0.01, 0.99), st.floats(0.1, 4))
def test_top_p_keeps_the_smallest_set_with_that_mass(logits: np.ndarray, top_p: float, temperature: float) -> None:
    p = torch.softmax(torch.from_numpy(logits.astype(np.float64)) / temperature, -1).numpy()
    kept = candidates(logits, SamplingConfig(temperature=temperature, top_p=top_p)).tokens
    mass = p[kept].sum()
    assert len(set(kept.tolist())) == len(kept) >= 1
    assert mass > top_p - 1e-5
    assert mass - p[kept].min() < top_p + 1e-5
    dropped = np.delete(p, kept)
    assert p[kept].min() >= dropped.max(initial=0) - 1e-6


@given(LOGITS, st.integers(1, 70))
def test_top_k_keeps_the_largest(logits: np.ndarray, top_k: int) -> None:
    kept = candidates(logits, SamplingConfig(temperature=1.0, top_k=top_k)).tokens
    expected = warped(logits, SamplingConfig(temperature=1.0, top_k=top_k)) > 0
    np.testing.assert_array_equal(np.sort(kept), np.flatnonzero(expected))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-5])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    logits = random_logits(4)
    assert choose(Sampler(SamplingConfig(temperature=temperature)), logits).token == logits.argmax()


@given(LOGITS)
def test_greedy_takes_the_first_maximum_and_its_softmax(logits: np.ndarray) -> None:
    choice = choose(Sampler(SamplingConfig()), logits)
    exact = torch.softmax(torch.from_numpy(logits.astype(np.float64)), -1)
    assert choice.token == int(np.flatnonzero(logits == logits.max())[0])
    assert choice.probability == pytest.approx(float(exact.max()), rel=1e-5)
    assert choice.entropy == pytest.approx(float(torch.distributions.Categorical(exact).entropy()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(temperature=0.3, top_k=5), SamplingConfig(temperature=2, top_p=0.5)]
)
def test_probability_and_entropy_are_those_of_the_unmodified_softmax(sampling: SamplingConfig) -> None:
    sampler = Sampler(sampling)
    for seed in range(10):
        logits = random_logits(seed)
        exact = torch.softmax(torch.from_numpy(logits.astype(np.float64)), -1)
        choice = choose(sampler, logits)
        assert choice.probability == pytest.approx(float(exact[choice.token]), rel=1e-5)
        assert choice.entropy == pytest.approx(float(torch.distributions.Categorical(exact).entropy()), rel=1e-5)


def test_frequencies_are_those_of_the_warpers() -> None:
    sampling = SamplingConfig(temperature=1.5, top_k=20, top_p=0.9, seed=3)
    logits, draws = random_logits(11, 40), 20_000
    expected = warped(logits, sampling)
    sampler = Sampler(sampling)
    counts = np.bincount([choose(sampler, logits).token for _ in range(draws)], minlength=40)
    assert not counts[expected == 0].any()
    support = expected > 0
    assert support.sum() > 3
    deviation = np.abs(counts[support] - draws * expected[support])
    assert np.all(deviation < 4.5 * np.sqrt(draws * expected[support] * (1 - expected[support])))


def test_a_seed_fixes_the_answer_whatever_is_sampled_beside_it() -> None:
    steps = [random_logits(seed) for seed in range(30)]
    sampling = SamplingConfig(temperature=2.0, seed=5)
    alone = Sampler(sampling)
    expected = [choose(alone, logits).token for logits in steps]
    ours, other = Sampler(sampling), Sampler(SamplingConfig(temperature=2.0, seed=6))
    mixed = [(choose(ours, logits).token, choose(other, logits).token) for logits in steps]
    assert [token for token, _ in mixed] == expected
    assert [token for _, token in mixed] != expected


def test_masked_logits_are_never_drawn_and_add_no_entropy() -> None:
    logits = np.array([0, -np.inf, 0, -np.inf], np.float32)
    sampler = Sampler(SamplingConfig(temperature=1.0))
    choices = [choose(sampler, logits) for _ in range(50)]
    assert {choice.token for choice in choices} == {0, 2}
    assert choices[0].entropy == pytest.approx(np.log(2))


def token_probabilities(logits: Array, tokens: np.ndarray) -> np.ndarray:
    return read_probabilities(to_host(log_probabilities(logits, tokens, Form())))


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 2**32 - 1), st.floats(0, 50))
def test_token_probabilities(count: int, vocab: int, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=scale, size=(count, vocab)).astype(np.float32)
    tokens = generator.integers(vocab, size=count)
    exact = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()[np.arange(count), tokens]
    assume(exact.min() > -600)
    np.testing.assert_allclose(np.log(token_probabilities(logits, tokens)), exact, rtol=1e-5, atol=1e-5)


TINY = SamplingConfig(temperature=0.9)
TINY_VOCAB = 12
DRAWS = 20_000


@cache
def tiny_logits(before: tuple[int, ...]) -> np.ndarray:
    """[TINY_VOCAB] behind these tokens."""
    return np.random.default_rng((7, *before)).normal(scale=1.2, size=TINY_VOCAB).astype(np.float32)


def draw_with_draft(sampler: Sampler, draft: tuple[int, ...]) -> tuple[int, ...]:
    """A token more than are drafted, as the cascade takes them."""
    length = len(draft)
    rows = np.stack([tiny_logits(draft[:count]) for count in range(length + 1)])
    said = [read(choice).token for choice in to_host(sampler.choose_each(rows, draft)).tolist()]
    accepted = next((count for count in range(length) if said[count] != draft[count]), length)
    tokens = tuple(said[: accepted + 1])
    sampler.take_back(length - accepted)
    return draw(sampler, length + 1, tokens)


def draw(sampler: Sampler, length: int, tokens: tuple[int, ...] = ()) -> tuple[int, ...]:
    while len(tokens) < length:
        tokens = (*tokens, choose(sampler, tiny_logits(tokens)).token)
    return tokens


def test_with_a_draft_a_seed_draws_what_it_draws_without() -> None:
    drafted, plain = Sampler(TINY), Sampler(TINY)
    for number in range(500):
        draft = (number % TINY_VOCAB, number % 5, 3)[: number % 4]
        assert draw_with_draft(drafted, draft) == draw(plain, len(draft) + 1)


def test_a_draft_leaves_the_distribution_as_it_is() -> None:
    """By a chi-square test of pairs, whose first is drafted; a pair's second follows from its first."""
    (draft,) = np.argsort(-tiny_logits(()))[1:2]  # wrong more often than not
    sampler = Sampler(TINY)
    check_pairs(Counter(draw_with_draft(sampler, (int(draft),)) for _ in range(DRAWS)))


def speculate(sampler: Sampler, made: int, length: int) -> tuple[int, ...]:
    """So many tokens, of which another model drafts two at once, drawn with the numbers that they are drawn with."""
    tokens: tuple[int, ...] = ()
    while len(tokens) < length:
        drafter, draft = Sampler(TINY), tokens
        drafter.skip(made + len(tokens))
        for _ in range(min(2, length - len(tokens) - 1)):
            draft = (*draft, choose(drafter, 0.7 * tiny_logits(draft) + other_logits(draft)).token)
        rows = np.stack([tiny_logits(draft[:count]) for count in range(len(tokens), len(draft) + 1)])
        guessed = draft[len(tokens) :]
        said = [read(choice).token for choice in to_host(sampler.choose_each(rows, guessed)).tolist()]
        accepted = next((count for count, token in enumerate(guessed) if said[count] != token), len(guessed))
        tokens = (*tokens, *said[: accepted + 1])
        sampler.take_back(len(guessed) - accepted)
    return tokens


@cache
def other_logits(before: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((8, *before)).normal(scale=0.5, size=TINY_VOCAB).astype(np.float32)


def test_speculation_leaves_the_distribution_as_it_is() -> None:
    """By the same test; and seed by seed, what is drawn is what is drawn without."""
    sampler, plain = Sampler(TINY), Sampler(TINY)
    found = [speculate(sampler, 3 * number, 3) for number in range(DRAWS)]
    check_pairs(Counter(tokens[:2] for tokens in found))
    assert found[:500] == [draw(plain, 3) for _ in range(500)]


def check_pairs(counts: Counter[tuple[int, ...]]) -> None:
    expected = {
        (one, two): DRAWS * warped(tiny_logits(()), TINY)[one] * warped(tiny_logits((one,)), TINY)[two]
        for one in range(TINY_VOCAB)
        for two in range(TINY_VOCAB)
    }
    likely = {tokens: number for tokens, number in expected.items() if number >= 5}
    assert sum(likely.values()) > 0.98 * DRAWS
    statistic = sum((counts[tokens] - number) ** 2 / number for tokens, number in likely.items())
    freedom = len(likely) - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(broken: float, temperature: float) -> None:
    logits = np.array([0.0, broken, 1.0], np.float32)
    with pytest.raises(EngineError, match="largest logit is"):
        choose(Sampler(SamplingConfig(temperature=temperature)), logits)
    with pytest.raises(EngineError, match="largest logit is"):
        token_probabilities(logits[None], np.array([0]))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7, seed=1),
        SamplingConfig(temperature=1.3, top_k=50, seed=2),
        SamplingConfig(temperature=1.0, top_p=0.9, seed=3),
        SamplingConfig(temperature=2.0, top_k=200, top_p=0.5, seed=4),
    ],
    ids=str,
)
def test_torch_chooses_what_numpy_chooses(sampling: SamplingConfig) -> None:
    """As on a GPU, where nothing may depend on how many candidates are left."""
    ours, theirs = Sampler(sampling), Sampler(sampling)
    for seed in range(200):
        logits = random_logits(seed)
        expected, actual = choose(ours, logits), choose(theirs, torch.from_numpy(logits))
        assert actual.token == expected.token
        assert actual.probability == pytest.approx(expected.probability, rel=1e-6)
        assert actual.entropy == pytest.approx(expected.entropy, rel=1e-5)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_top_tokens(count: int, vocab: int, seed: int, is_tied: bool) -> None:
    """Those of the softmax at temperature 1, whatever is drawn; of equal ones, lower ids first."""
    logits = np.random.default_rng(seed).normal(scale=3, size=vocab).astype(np.float32)
    logits = np.round(logits) if is_tied else logits
    exact = torch.softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()
    expected = np.argsort(-exact, stable=True)[:count]
    for kind in (np.asarray, torch.from_numpy):
        choice = choose(Sampler(SamplingConfig(temperature=0.5, top_p=0.3, top_logprobs=count)), kind(logits))
        assert [one.token for one in choice.top] == expected.tolist()
        np.testing.assert_allclose([one.probability for one in choice.top], exact[expected], rtol=1e-5)
        assert {one.token: one.probability for one in choice.top}.get(choice.token, choice.probability) == (
            choice.probability
        )
    assert choose(Sampler(SamplingConfig()), logits).top == ()


def test_token_probabilities_of_torch_are_those_of_numpy() -> None:
    logits = np.stack([random_logits(seed) for seed in range(5)])
    tokens = np.array([3, 0, 299, 17, 4])
    found = token_probabilities(torch.from_numpy(logits), tokens)
    np.testing.assert_allclose(found, token_probabilities(logits, tokens), rtol=1e-6)
