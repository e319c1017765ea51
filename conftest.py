"""For all tests: a slow machine is no reason to fail, and being told to stop is none to leave things behind."""

import signal

import pytest
from hypothesis import HealthCheck, settings

# What was found at random can be found again.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")


def pytest_configure() -> None:
    """End by SIGTERM as by Ctrl-C: the fixtures' ends run, so no guest, server or namespace stays."""
    signal.signal(signal.SIGTERM, lambda number, frame: pytest.exit("ended by SIGTERM", 143))
