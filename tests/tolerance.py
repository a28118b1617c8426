"""The tolerances of parity tests, one place."""

from typing import TypedDict


class Tolerance(TypedDict):
    rtol: float
    atol: float


TOLERANCE: dict[str, Tolerance] = {
    "fp32": {"rtol": 1e-4, "atol": 1e-4},
    "op": {"rtol": 1e-5, "atol": 1e-5},
    "scores": {"rtol": 1e-5, "atol": 1e-6},
}
"""`op`: one op against its float64 reference; `scores`: importance against a brute-force sum."""
