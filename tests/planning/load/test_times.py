"""Lines through runs, and what a roofline says of them."""

from pathlib import Path

import numpy as np
import pytest

from engine.config import GuidanceConfig
from engine.planning.chip import Chip
from engine.planning.load.predicted import predicted_times
from engine.planning.load.times import Line, fitted, slowest
from engine.planning.pair_plan import plan_pair
from engine.planning.plan_config import PlanConfig
from engine.planning.roofline import latency
from engine.planning.workload import Workload


def test_a_line_is_found_again_in_runs_that_lie_about_it() -> None:
    rng, line = np.random.default_rng(0), Line(2e-3, 3e-5, 4e-9)
    sizes = [(float(rows), float(rows * keys)) for rows in range(1, 65) for keys in (100, 1000, 4000)]
    exact = [(rows, pairs, line.seconds(rows, pairs)) for rows, pairs in sizes]
    assert vars(fitted(exact)) == pytest.approx(vars(line), rel=1e-6)
    noisy = [(rows, pairs, seconds * rng.uniform(0.9, 1.1)) for rows, pairs, seconds in exact]
    for rows, pairs in sizes:
        assert fitted(noisy).seconds(rows, pairs) == pytest.approx(line.seconds(rows, pairs), rel=0.05)


def test_runs_that_hardly_differ_grow_with_their_rows() -> None:
    """Noise would else say that a prompt of half as many rows takes a quarter, or as much."""
    rng = np.random.default_rng(0)
    prompts = [(rows, rows * (rows + 1) / 2, 0.1 * rng.uniform(0.9, 1.1)) for rows in rng.integers(265, 268, 200)]
    found = fitted(prompts)
    assert (found.fixed, found.pair) == (0, 0)
    assert found.seconds(133, 133 * 67) == pytest.approx(0.05, rel=0.02)


def test_no_part_of_a_line_is_below_zero() -> None:
    found = fitted([(1, 0, 3.0), (2, 0, 2.0), (3, 0, 1.0)])
    assert (found.row, found.pair) == (0, 0)
    assert found.fixed == pytest.approx(2, rel=0.5)
    assert fitted([(1, 5, 0.25)]).seconds(1, 5) == pytest.approx(0.25)


@pytest.mark.parametrize("world_size", [1, 2])
def test_lines_of_a_roofline_are_the_roofline(pair: Path, world_size: int) -> None:
    """At sizes that they were not drawn through."""
    plan = plan_pair(
        PlanConfig(pair / "small", pair / "large", world_size=world_size, guidance=GuidanceConfig(enabled=False))
    )
    chip = Chip()
    for model, times in (
        (plan.small, predicted_times(plan, chip).small),
        (plan.large, predicted_times(plan, chip).large),
    ):
        for text, batch in ((100, 2), (700, 5), (3000, 16)):
            question = Workload(tiles=3, text_tokens=text, new_tokens=1, batch=batch)
            tokens = question.prompt_tokens(model.config)
            expected = latency(model, question, chip).next_token
            assert slowest(times.step, batch, batch * tokens) == pytest.approx(expected, rel=0.02)
        alone = Workload(tiles=3, text_tokens=2000, new_tokens=1)
        tokens = alone.prompt_tokens(model.config)
        prompt = slowest(times.extend, tokens, tokens * (tokens + 1) / 2) + slowest(times.encode, 3, 0)
        assert prompt == pytest.approx(latency(model, alone, chip).first_token, rel=0.05)
