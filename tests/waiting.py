"""Waiting for a condition."""

import time


def wait_until(happens, timeout_s=15):
    """Wait for something; fail where it does not come."""
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
