"""The tolerances of parity tests, one place."""

from typing import TypedDict


class Tolerance(TypedDict):
    rtol: float
    atol: float


TOLERANCE: dict[str, Tolerance] = {
    "fp32": {"rtol": 1e-4, "atol": 1e-4},
    "fp16": {"rtol": 5e-3, "atol": 5e-3},
    "op": {"rtol": 1e-5, "atol": 1e-5},
    "scores": {"rtol": 1e-5, "atol": 1e-6},
}
"""`fp16`: whole models in half precision, of logits near 1; `op`: one op against its float64 reference; `scores`:
importance against a brute-force sum."""
