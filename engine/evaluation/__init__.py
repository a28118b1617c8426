"""Benchmarks, their metrics, and what a run over one leaves behind."""
