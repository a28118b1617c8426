"""SGL engine: compiled engines for small-VLM-guided large-VLM inference."""
