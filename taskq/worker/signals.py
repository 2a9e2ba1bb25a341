"""How a worker hears that it is to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

SIGNAL_ECHO_S = 0.1
"""Signals closer together count as one: `timeout` and some init systems signal a process and then its whole group."""


@contextmanager
def catching_signals(stop: Callable[[], object]) -> Generator[None]:
    """Inside this, SIGTERM and SIGINT call `stop`. On the main thread only.

    Python's plain handlers, so that a signal between the start of the process and that of its event loop counts.
    """
    heard_at = -SIGNAL_ECHO_S

    def hear(*_: object) -> None:
        nonlocal heard_at
        if time.monotonic() - heard_at >= SIGNAL_ECHO_S:
            stop()
        heard_at = time.monotonic()

    before = {which: signal.signal(which, hear) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
