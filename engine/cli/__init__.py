"""Commands of `sgl`, one module each, and what they share."""
