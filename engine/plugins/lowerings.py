"""What the ops of the domain `sgl` become on each target: one line for each."""

from engine.plugins.targets.onnxruntime import ONNXRUNTIME
from engine.plugins.targets.tensorrt import TENSORRT
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.target import Target

LOWERINGS = {
    Target.ONNXRUNTIME: ONNXRUNTIME,
    Target.TENSORRT_RTX: TENSORRT_RTX,
    Target.TENSORRT: TENSORRT,
}
