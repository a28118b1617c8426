"""Ops of the domain sgl: contract, reference, lowerings, kernels."""
