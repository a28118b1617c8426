"""What a Triton Inference Server runs: the model `sgl`, a thin adapter of the runtime."""
