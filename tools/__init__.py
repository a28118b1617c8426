"""What one runs beside the engine."""
