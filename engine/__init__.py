"""SGL engine: compiled engines for small-VLM-guided large-VLM inference."""

__version__ = "0.1.0"
