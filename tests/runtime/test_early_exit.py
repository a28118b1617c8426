"""Decisions against torch's statistics and the definitions in algebra."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.config import ExitConfig, ExitCriterion, Normalise
from engine.errors import EngineError
from engine.runtime.early_exit import (
    confidence,
    consistency,
    consistency_can_matter,
    decide,
    entropy,
    quantile,
)

UNIT = st.floats(0, 1)
ANSWERS = arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-6, 1))
CRITERIA = st.sampled_from(ExitCriterion)


@given(ANSWERS)
def test_confidence_is_the_inverse_perplexity(p: np.ndarray) -> None:
    # cross entropy over two classes whose probabilities are p and 1 - p is the negative log-likelihood
    loss = torch.nn.functional.nll_loss(torch.from_numpy(np.log(p))[:, None], torch.zeros(len(p), dtype=torch.long))
    assert confidence(p) == pytest.approx(float(torch.exp(-loss)), rel=1e-9)


@given(ANSWERS)
def test_consistency_is_the_product_or_the_geometric_mean(q: np.ndarray) -> None:
    whole = consistency(q, Normalise.PRODUCT)
    assert whole == pytest.approx(float(torch.from_numpy(q).prod()), rel=1e-9)
    assert consistency(q, Normalise.MEAN) == pytest.approx(whole ** (1 / len(q)), rel=1e-9)


def test_a_long_answer_does_not_underflow() -> None:
    p = np.full(2000, 0.5, np.float32)
    assert confidence(p) == pytest.approx(0.5)
    assert consistency(p, Normalise.PRODUCT) == 0
    assert consistency(p, Normalise.MEAN) == pytest.approx(0.5)


def test_an_impossible_token_makes_the_answer_impossible() -> None:
    assert confidence(np.array([0.9, 0.0])) == 0
    assert consistency(np.array([0.9, 0.0]), Normalise.PRODUCT) == 0


@given(ANSWERS)
def test_quantiles(p: np.ndarray) -> None:
    expected = torch.quantile(torch.from_numpy(p), torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64))
    ours = [quantile(p, criterion) for criterion in (ExitCriterion.Q1, ExitCriterion.Q2, ExitCriterion.Q3)]
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-9)
    assert ours == sorted(ours, reverse=True)


@given(arrays(np.float32, (5, 7), elements=st.floats(-5, 5, width=32)))
def test_entropy_is_that_of_all_tokens(logits: np.ndarray) -> None:
    entropies = torch.distributions.Categorical(logits=torch.from_numpy(logits)).entropy()
    assert entropy(entropies.numpy()) == pytest.approx(-float(entropies.double().sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("criterion", "value"),
    [
        (ExitCriterion.DECISION_SCORE, (0.5 + 0.06) / 2),
        (ExitCriterion.CONFIDENCE, 0.5),
        (ExitCriterion.CONSISTENCY, 0.06),
        (ExitCriterion.Q1, 0.8125),
        (ExitCriterion.Q2, 0.625),
        (ExitCriterion.Q3, 0.4375),
        (ExitCriterion.ENTROPY, -0.75),
    ],
)
def test_decision_by_hand(criterion: ExitCriterion, value: float) -> None:
    p, entropies, q = np.array([0.25, 1.0]), np.array([0.5, 0.25]), np.array([0.1, 0.6])
    at = decide(ExitConfig(exit_threshold=value - 1e-12, criterion=criterion), p, entropies, q)
    above = decide(ExitConfig(exit_threshold=value + 1e-9, criterion=criterion), p, entropies, q)
    assert at.value == pytest.approx(value)
    assert (at.confidence, at.consistency) == pytest.approx((0.5, 0.06))
    assert (at.early_exit, above.early_exit) == (True, False)
    assert at.criterion is criterion


def test_the_threshold_itself_exits() -> None:
    one = np.ones(3)
    assert decide(ExitConfig(exit_threshold=1.0), one, np.zeros(3), one).early_exit


@given(CRITERIA, st.sampled_from(Normalise), ANSWERS, ANSWERS, st.floats(-2, 2), st.floats(-2, 2))
def test_a_lower_threshold_never_undoes_an_exit(
    criterion: ExitCriterion, normalise: Normalise, p: np.ndarray, q: np.ndarray, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    exits = [
        decide(ExitConfig(exit_threshold=t, criterion=criterion, normalise=normalise), p, 1 - p, q).early_exit
        for t in (low, high)
    ]
    assert exits[0] or not exits[1]


@given(CRITERIA, ANSWERS, ANSWERS, st.floats(-0.5, 1.5))
def test_a_skipped_pass_changes_no_outcome(
    criterion: ExitCriterion, p: np.ndarray, q: np.ndarray, threshold: float
) -> None:
    config = ExitConfig(exit_threshold=threshold, criterion=criterion)
    assume(not consistency_can_matter(config, confidence(p)))
    skipped, passed = decide(config, p, 1 - p, None), decide(config, p, 1 - p, q)
    assert skipped.early_exit == passed.early_exit
    assert skipped.consistency is None


@given(UNIT, st.floats(-0.5, 1.5))
def test_a_pass_matters_iff_both_outcomes_are_possible(sureness: float, threshold: float) -> None:
    config = ExitConfig(exit_threshold=threshold)
    p = np.array([sureness])
    outcomes = {decide(config, p, p, np.array([q])).early_exit for q in (0.0, 1.0)}
    # exp(log(p)) may differ from p in the last bit
    assume(min(abs(confidence(p) / 2 - threshold), abs((confidence(p) + 1) / 2 - threshold)) > 1e-12)
    assert consistency_can_matter(config, sureness) == (len(outcomes) == 2)


@pytest.mark.parametrize(("threshold", "matters"), [(0.25, False), (0.26, True), (0.75, True), (0.76, False)])
def test_bounds_of_what_the_pass_can_change(threshold: float, matters: bool) -> None:
    """A confidence of 0.5 gives a decision score of 0.25 to 0.75, both included."""
    assert consistency_can_matter(ExitConfig(exit_threshold=threshold), 0.5) is matters


def test_who_needs_the_pass() -> None:
    needing = {criterion for criterion in ExitCriterion if ExitConfig(criterion=criterion).needs_consistency()}
    assert needing == {ExitCriterion.DECISION_SCORE, ExitCriterion.CONSISTENCY}
    assert not consistency_can_matter(ExitConfig(criterion=ExitCriterion.CONFIDENCE), 0.5)


def test_an_empty_answer_is_refused() -> None:
    none = np.zeros(0)
    with pytest.raises(EngineError, match="no tokens"):
        decide(ExitConfig(), none, none, none)


@pytest.mark.parametrize("criterion", [ExitCriterion.CONFIDENCE, ExitCriterion.ENTROPY])
def test_what_is_not_a_number_is_refused(criterion: ExitCriterion) -> None:
    broken, sound = np.array([0.5, np.nan]), np.array([0.5, 0.5])
    p, entropies = (sound, broken) if criterion is ExitCriterion.ENTROPY else (broken, sound)
    with pytest.raises(EngineError, match="answer token 1 is not a number"):
        decide(ExitConfig(criterion=criterion), p, entropies, None)
