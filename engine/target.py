"""What an engine is compiled for, in which precision, and what can run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import EngineError


class Device(StrEnum):
    """What runs an engine."""

    CPU = "cpu"
    CUDA = "cuda"
    """The first NVIDIA GPU that the process sees; of several ranks on a machine, one for each."""


class Precision(StrEnum):
    """How weights are stored; below 16 bits it is the matrices' precision, the rest has that of the activations."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"


@dataclass(frozen=True)
class Library:
    """What compiles and runs a target's plans. module: as it is imported; extra: of this package, which installs it."""

    module: str
    extra: str


@dataclass(frozen=True)
class Traits:
    """What is declared of a target.

    precisions: those that each device runs; the first device is the default, and what several ranks run on.
    activations: NumPy's name of the type of activations, features and KV caches, unless the precision is FP16.
    suffix: of an engine's file.
    plans_memory: whether memory is planned for the largest call when an engine is built.
    library: None where what every installation has suffices.
    least_heads: query heads of a rank; for fewer there is no kernel of causal attention.
    """

    precisions: Mapping[Device, tuple[Precision, ...]]
    activations: str
    suffix: str
    plans_memory: bool = False
    library: Library | None = None
    least_heads: int = 1


PLANNED = (Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4, Precision.FP8)
"""What both TensorRT libraries take."""


class Target(StrEnum):
    """What an engine is compiled for: its name and what is declared of it.

    What is done for it is registered once in each room: its ops in `engine/plugins/lowerings.py`, what builds it in
    `engine/build/toolchains.py`, what runs it in `engine/runtime/loading.py`.
    """

    traits: Traits

    def __new__(cls, name: str, *declared: Traits) -> "Target":
        """Of what is declared below; a name alone finds the one of that name."""
        target = str.__new__(cls, name)
        target._value_ = name
        (target.traits,) = declared
        return target

    ONNXRUNTIME = (
        "onnxruntime",
        Traits(
            precisions={
                Device.CPU: (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4),
                Device.CUDA: (Precision.FP16,),
            },
            activations="float32",
            suffix=".onnx",
        ),
    )
    """ONNX Runtime: on any CPU, and on GPUs with its CUDA provider."""
    TENSORRT_RTX = (
        "tensorrt_rtx",
        Traits(
            precisions={Device.CUDA: PLANNED},
            activations="bfloat16",
            suffix=".plan",
            plans_memory=True,
            library=Library("tensorrt_rtx_bindings", "tensorrt-rtx"),
            least_heads=4,
        ),
    )
    """TensorRT-RTX: plans are built on any machine and finished on the GPU that runs them."""
    TENSORRT = (
        "tensorrt",
        Traits(
            precisions={Device.CUDA: PLANNED},
            activations="bfloat16",
            suffix=".plan",
            plans_memory=True,
            library=Library("tensorrt", "tensorrt"),
        ),
    )
    """TensorRT: plans are built on a GPU, for GPUs of that kind."""

    def plans_memory(self) -> bool:
        """Whether memory is planned for the largest call when an engine is built."""
        return self.traits.plans_memory

    def devices(self) -> tuple[Device, ...]:
        """What can run it; the first is the default, and what several ranks run on."""
        return tuple(self.traits.precisions)

    def precisions(self) -> tuple[Precision, ...]:
        """What it can be built in."""
        return tuple(dict.fromkeys(one for several in self.traits.precisions.values() for one in several))

    def activations(self, precision: Precision) -> str:
        """NumPy's name of the type of activations, features and KV caches; scores and logits are always float32."""
        return "float16" if precision is Precision.FP16 else self.traits.activations

    def check(self, precision: Precision) -> None:
        """Raises EngineError unless it can be built in this precision."""
        if precision not in self.precisions():
            raise EngineError(
                f"target {self} is not built in precision {precision}; choose {' or '.join(self.precisions())}"
            )


def targets_for(device: Device) -> tuple[Target, ...]:
    """Those whose engines run on such a device if nobody says otherwise; the first is the one to recommend."""
    return tuple(target for target in Target if target.devices()[0] is device)
