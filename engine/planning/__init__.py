"""What a pair will need before it is built: memory of each rank, what fits, communication, predicted latency."""
