"""A Triton Inference Server in an environment of its own, for tests, and a storm of questions to one."""
