"""What one runs once on a machine with a GPU, and what of it needs none."""
