"""How many bits a number takes in the engines of each target and precision: the one table that plans go by."""

from dataclasses import dataclass

from engine.errors import EngineError


@dataclass(frozen=True)
class Storage:
    """Bits per number.

    matrix: of a weight matrix, its scales included. other: of all further parameters (embedding, norms, biases).
    activation: of float activations and of the KV cache.
    """

    matrix: float
    other: int
    activation: int


GPU = {
    "bf16": Storage(16, 16, 16),
    "fp16": Storage(16, 16, 16),
    "fp8": Storage(8, 16, 16),
    "int8": Storage(8, 16, 16),
    # A bf16 scale for each 128 weights.
    "int4": Storage(4 + 16 / 128, 16, 16),
}
STORAGE: dict[str, dict[str, Storage]] = {
    # int8: the larger of its two kernels' forms, with a float32 scale for each 128 weights.
    "onnxruntime": {"fp32": Storage(32, 32, 32), "int8": Storage(8 + 32 / 128, 32, 32)},
    "tensorrt": GPU,
    "tensorrt_rtx": GPU,
}
"""Target -> precision -> bits. Quantization is of weights only: products are computed in the activations' type."""
PRECISIONS = tuple(dict.fromkeys(precision for table in STORAGE.values() for precision in table))


def storage_of(target: str, precision: str) -> Storage:
    """Raises EngineError when a target has no such precision."""
    if precision not in STORAGE[target]:
        raise EngineError(f"target {target} has no precision {precision}; choose one of {', '.join(STORAGE[target])}")
    return STORAGE[target][precision]
