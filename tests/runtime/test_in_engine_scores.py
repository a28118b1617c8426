"""Scores that the language engine adds up in place: a run that fails and is tried again counts once."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from engine import bindings as names
from engine.model_config import LanguageConfig, RopeConfig
from engine.runtime.executor import HostBuffers
from engine.runtime.language import LanguageModel
from engine.runtime.prompt import PromptTokens
from tests.prefilled import Prefilled, step

CONFIG = LanguageConfig(8, 2, 2, 1, 4, 16, 32, 1e-6, RopeConfig(1e4, 64))
PROMPT = PromptTokens(np.arange(6), np.array([1, 2]), np.zeros((2, 8), np.float32))


class Adding(HostBuffers):
    """Adds the weight of all scored rows to every sum; `fails` says what it has done so far when it does."""

    def __init__(self) -> None:
        self.bound: dict[str, np.ndarray] = {}
        self.fails = False

    def bind_input(self, name: str, array: np.ndarray) -> None:
        self.bound[name] = array

    bind_output = bind_input

    def run(self) -> None:
        sums = self.bound[names.VISUAL_SCORES_OUT]
        sums += self.bound[names.SCORE_WEIGHT].sum(1)[:, None, None]
        if self.fails:
            raise RuntimeError("too late")


@pytest.fixture
def language() -> LanguageModel:
    return LanguageModel(Adding(), CONFIG, scores=True, places=3)


def failing(language: LanguageModel) -> Adding:
    assert isinstance(language.executor, Adding)
    return language.executor


def test_a_prompt_that_fails(language: LanguageModel) -> None:
    engine, rows = failing(language), np.array([3, 4, 5])
    one = Prefilled(language, PROMPT, 4, scored=rows)
    assert_array_equal(one.visual_scores(), np.full((2, 2), 3))
    engine.fails = True
    with pytest.raises(RuntimeError):
        Prefilled(language, PROMPT, 4, scored=rows)
    assert_array_equal(one.visual_scores(), np.full((2, 2), 3))
    engine.fails = False
    assert_array_equal(Prefilled(language, PROMPT, 4, scored=rows).visual_scores(), np.full((2, 2), 3))


def test_a_step_that_fails_for_several(language: LanguageModel) -> None:
    """As the scheduler tries it again: one by one."""
    several = [Prefilled(language, PROMPT, 4, scored=np.arange(3, 3 + count)) for count in (1, 2, 3)]
    engine = failing(language)
    step(several, 5, [True, False, True])
    engine.fails = True
    with pytest.raises(RuntimeError):
        step(several, 5, [True, True, True])
    with pytest.raises(RuntimeError):
        step(several[1:2], 5, [True])
    engine.fails = False
    for one in several:
        step([one], 5, [True])
    assert [one.visual_scores().max() for one in several] == [3, 3, 5]
    assert [one.visual_scores().min() for one in several] == [3, 3, 5]
