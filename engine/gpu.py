"""The GPUs of this machine, asked of its driver."""

import ctypes
from dataclasses import dataclass

from engine.errors import EngineError

DRIVER = "libcuda.so.1"
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Which of them a process sees: read by CUDA when a process first uses it, and inherited by those that it starts."""
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
"""Of CUdevice_attribute."""
CAPABILITIES = (80, 86, 89, 90, 100, 103, 120, 121)
"""Compute capabilities (times 10) that our kernels are compiled for."""


@dataclass(frozen=True)
class Gpu:
    """Its name and compute capability."""

    name: str
    major: int
    minor: int

    def __str__(self) -> str:
        """As in `NVIDIA H100 80GB HBM3 (9.0)`."""
        return f"{self.name} ({self.major}.{self.minor})"

    def capability(self) -> int:
        """As in 90."""
        return 10 * self.major + self.minor


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver, without which nothing runs on a GPU."""
    return _load_driver() is not None


def fingerprint(index: int = 0) -> str:
    """Of a GPU: plans that are tuned on one kind run on no other. Raises EngineError."""
    return str(find_gpu(index))


def find_gpu(index: int = 0) -> Gpu:
    """Raises EngineError."""
    driver = _load_driver()
    if driver is None:
        raise EngineError(
            f"no NVIDIA driver was found ({DRIVER} is missing); build on the machine with the GPU, "
            "or for target tensorrt_rtx"
        )
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    for call, *arguments in (
        (driver.cuInit, 0),
        (driver.cuDeviceGet, ctypes.byref(device), index),
        (driver.cuDeviceGetName, name, len(name), device),
        (driver.cuDeviceGetAttribute, ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device),
        (driver.cuDeviceGetAttribute, ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device),
    ):
        if status := call(*arguments):
            raise EngineError(
                f"the NVIDIA driver finds no GPU that it can use (CUDA error {status}); build on the machine with the "
                "GPU, or for target tensorrt_rtx"
            )
    return Gpu(name.value.decode(), major.value, minor.value)


def _load_driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError:
        return None
