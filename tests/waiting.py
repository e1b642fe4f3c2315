"""Waits in tests of several processes."""

import time


def until(condition, seconds=600):
    """Waits until a condition holds, and returns what it gives."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return value
