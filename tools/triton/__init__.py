"""What a Triton Inference Server runs: the models `small_vlm`, `large_vlm` and `sgl`, thin adapters of the runtime."""
