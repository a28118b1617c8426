"""What becomes of questions that come as they like: the scheduler on a virtual clock, and what it takes to be fast."""
