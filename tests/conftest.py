"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Deadlines and slow generation time the machine, not the code.
settings.register_profile("engine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("engine")
