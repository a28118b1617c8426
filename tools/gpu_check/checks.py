"""All checks, in the order in which they run."""

from tools.gpu_check.attention import ATTENTION, TILE_CHOICE
from tools.gpu_check.check import Check
from tools.gpu_check.engine_checks import ONNXRUNTIME, RANKS_RTX, RANKS_TENSORRT, RTX, TENSORRT
from tools.gpu_check.kernel_checks import INTERPRETED, PARITY, compiled_check
from tools.gpu_check.machine import MACHINE
from tools.gpu_check.speed import SPEED_RTX, SPEED_TENSORRT

CHECKS = (
    INTERPRETED,
    compiled_check(),
    MACHINE,
    PARITY,
    ATTENTION,
    TILE_CHOICE,
    RTX,
    TENSORRT,
    ONNXRUNTIME,
    RANKS_RTX,
    RANKS_TENSORRT,
    SPEED_RTX,
    SPEED_TENSORRT,
)


def find_check(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)
