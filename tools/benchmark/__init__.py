"""How fast and big the engine is, next to itself without a feature and next to other engines: docs/benchmarks.md."""
