"""The kernels: right in the interpreter, compiled for every GPU, right on this GPU."""

from collections.abc import Iterator, Sequence

from engine.gpu import CAPABILITIES
from engine.plugins.compile import usage
from tools.gpu_check.check import Check, Line, Measured, at_least, at_most
from tools.gpu_check.interpreter import interpreter
from tools.gpu_check.kernels import compile_named, kernels
from tools.gpu_check.parity import ATTENTION_SHAPES, attention_parity, prune_parity

INTERPRETED_SHAPE = "ragged prefill"
INTERPRETED_ERROR = 1e-5
OUTPUT_ERROR = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Rounding of the result, and of the probabilities before they meet the values."""
RECEIVED_ERROR = 1e-4
"""The scores are float32 whatever the inputs are."""


def measure_interpreted() -> Iterator[Measured]:
    with interpreter() as process:
        shape = ATTENTION_SHAPES[INTERPRETED_SHAPE]
        agreement = process.submit(attention_parity, shape, "cpu", "float32").result()
    yield Measured(agreement.output)
    yield Measured(agreement.received)


def compiled_check(capabilities: Sequence[int] = CAPABILITIES) -> Check:
    """A line for each compute capability."""

    def measure() -> Iterator[Measured]:
        for capability in capabilities:
            binaries = [compile_named(name, capability) for name in kernels(capability)]
            used = [usage(binary.ptx, capability) for binary in binaries]
            registers, shared = max(x.registers for x in used), max(x.shared_bytes for x in binaries)
            note = f"{len(binaries)} kernels; at most {registers} registers, {shared / 1024:.0f} KiB shared memory"
            yield Measured(max(x.spill_bytes for x in used), note)

    lines = tuple(Line(f"sm_{capability}", "bytes", at_most(0)) for capability in capabilities)
    return Check("compiled", "Kernels compiled ahead of time: registers that spill", False, lines, measure)


def measure_parity() -> Iterator[Measured]:
    for dtype in OUTPUT_ERROR:
        agreements = {name: attention_parity(shape, "cuda", dtype) for name, shape in ATTENTION_SHAPES.items()}
        for part in ("output", "received"):
            worst = max(agreements, key=lambda name: getattr(agreements[name], part))
            yield Measured(getattr(agreements[worst], part), f"{len(agreements)} shapes; worst: {worst}")
        yield Measured(sum(agreement.repeatable for agreement in agreements.values()) / len(agreements))
    yield Measured(float(prune_parity(2, 700, 123, 2048, 64, "cuda", "bfloat16")))


INTERPRETED = Check(
    "interpreted",
    f"Kernels in Triton's interpreter ({INTERPRETED_SHAPE}) against the NumPy reference",
    False,
    (
        Line("visual_attention: largest error of the output", "of the largest", at_most(INTERPRETED_ERROR)),
        Line("visual_attention: largest error of the scores", "of the largest", at_most(INTERPRETED_ERROR)),
    ),
    measure_interpreted,
)
PARITY = Check(
    "parity",
    "Kernels on this GPU against the NumPy reference (float64)",
    True,
    (
        *(
            line
            for dtype, error in OUTPUT_ERROR.items()
            for line in (
                Line(f"visual_attention, {dtype}: largest error of the output", "of the largest", at_most(error)),
                Line(
                    f"visual_attention, {dtype}: largest error of the scores", "of the largest", at_most(RECEIVED_ERROR)
                ),
                Line(f"visual_attention, {dtype}: shapes with the same bits in two runs", "of all", at_least(1)),
            )
        ),
        Line("prune_visual_tokens, bfloat16: same bits as the reference", "of all", at_least(1)),
    ),
    measure_parity,
)
