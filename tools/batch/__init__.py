"""What `sgl batch` is tried and measured with: kills, a million lines, ranks beside threads."""
