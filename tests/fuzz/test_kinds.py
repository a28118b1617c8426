"""Whatever a stranger gives the engine ends in a good result or an EngineError; `python -m tools.fuzz` runs longer."""

import pytest

from tools.fuzz.driver import fuzz
from tools.fuzz.kind import Kind, kinds

CASES = 2000
SLOW = 120.0
"""Seconds of one case, on however busy a machine."""


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds().keys())
def test_every_case_ends_well_or_in_an_engine_error(kind: Kind) -> None:
    failures = [failure for failure in fuzz(kind, range(CASES), SLOW) if failure is not None]
    assert not failures, "\n".join(f"seed {failure.seed}: {failure.place}" for failure in failures[:20])
