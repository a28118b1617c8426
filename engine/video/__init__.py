"""Clips: which are read, which of their frames are chosen, and what one may cost."""
