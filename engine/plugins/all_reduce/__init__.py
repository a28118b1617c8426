"""The sum over all ranks of a tensor-parallel model."""

from engine.plugins.all_reduce.contract import NAME, reference
from engine.plugins.all_reduce.onnxruntime import cut

__all__ = ["NAME", "cut", "reference"]
