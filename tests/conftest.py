"""Settings of all tests."""

from hypothesis import settings

# A deadline times the machine, not the code.
settings.register_profile("engine", deadline=None)
settings.load_profile("engine")
