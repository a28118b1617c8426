"""What one needs to work on this project; not installed."""
