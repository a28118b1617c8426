"""The GPU that a prediction is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU as its maker states it. The defaults are the H100 SXM's; matrix products are bf16, dense."""

    name: str = "NVIDIA H100 SXM"
    memory: int = 80 << 30
    """bytes"""
    reserve: int = 1 << 30
    """bytes that the driver and the libraries take of it; assumed"""
    bandwidth: float = 3.35e12
    """bytes/s of its memory"""
    matrix_rate: float = 989e12
    """multiplications and additions per second"""
    interconnect: float = 450e9
    """bytes/s to the other GPUs, in each direction (NVLink 4)"""
    reduce_latency: float = 10e-6
    """seconds that a sum over the ranks takes however small it is; assumed, no maker states it"""

    def usable(self) -> int:
        return self.memory - self.reserve
