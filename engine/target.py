"""What an engine is compiled for, in which precision, and what can run it."""

from enum import StrEnum

from engine.errors import EngineError


class Device(StrEnum):
    """What runs an engine."""

    CPU = "cpu"
    CUDA = "cuda"
    """The first NVIDIA GPU that the process sees; of several ranks on a machine, one for each."""


class Target(StrEnum):
    """What an engine is compiled for."""

    ONNXRUNTIME = "onnxruntime"
    """ONNX Runtime: on any CPU, and on GPUs with its CUDA provider."""
    TENSORRT_RTX = "tensorrt_rtx"
    """TensorRT-RTX: plans are built on any machine and finished on the GPU that runs them."""
    TENSORRT = "tensorrt"
    """TensorRT: plans are built on a GPU, for GPUs of that kind."""

    def plans_memory(self) -> bool:
        """Whether memory is planned for the largest call when an engine is built."""
        return self is not Target.ONNXRUNTIME

    def devices(self) -> tuple[Device, ...]:
        """What can run it; the first is the default."""
        return (Device.CPU, Device.CUDA) if self is Target.ONNXRUNTIME else (Device.CUDA,)

    def precisions(self) -> "tuple[Precision, ...]":
        """What it can be built in."""
        if self is Target.ONNXRUNTIME:
            return Precision.FP32, Precision.FP16, Precision.INT8
        return Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4, Precision.FP8

    def check(self, precision: "Precision") -> None:
        """Raises EngineError unless it can be built in this precision."""
        if precision not in self.precisions():
            raise EngineError(
                f"target {self} is not built in precision {precision}; choose {' or '.join(self.precisions())}"
            )


class Precision(StrEnum):
    """How weights are stored; below 16 bits it is the matrices' precision, the rest has that of the activations."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    def activations(self, target: Target) -> str:
        """NumPy's name of the type of activations, features and KV caches; scores and logits are always float32."""
        if self is Precision.FP16:
            return "float16"
        return "float32" if target is Target.ONNXRUNTIME else "bfloat16"
