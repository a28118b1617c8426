"""All checks, in the order in which they run."""

from tools.gpu_check.attention import ATTENTION, TILE_CHOICE
from tools.gpu_check.engine_checks import ONNXRUNTIME, RTX, TENSORRT
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
    SPEED_RTX,
    SPEED_TENSORRT,
)
