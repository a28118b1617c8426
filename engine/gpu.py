"""The GPUs of this machine, asked of its driver: plans that are tuned on one kind of GPU run on no other."""

import ctypes

from engine.errors import EngineError

DRIVER = "libcuda.so.1"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
"""Of CUdevice_attribute."""


def has_driver() -> bool:
    """Whether this machine has NVIDIA's driver, without which nothing runs on a GPU."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def fingerprint(index: int = 0) -> str:
    """Name and compute capability of a GPU, as in `NVIDIA H100 80GB HBM3 (9.0)`. Raises EngineError."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise EngineError(
            f"no NVIDIA driver was found ({DRIVER} is missing); build on the machine with the GPU, "
            "or for target tensorrt_rtx"
        ) from None
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
    return f"{name.value.decode()} ({major.value}.{minor.value})"
