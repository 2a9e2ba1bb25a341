"""How a worker, and its supervisor, hear that they are to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from attrs import define, field

SIGNAL_ECHO_S = 0.1
"""Signals closer together count as one: `timeout` and some init systems signal a process and then its whole group."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """What tells a process to stop. SIGHUP, which comes when a terminal is closed, does not where it is ignored, as by
    `nohup`."""
    always = (signal.SIGTERM, signal.SIGINT)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


@define(eq=False)
class Ear:
    """Calls `stop` for each signal that is no echo of the one before. `hear` belongs to signal handlers."""

    stop: Callable[[], object]
    _heard_at: float = field(init=False, default=-SIGNAL_ECHO_S)

    def hear(self) -> None:
        """Another may come while this runs, in the middle of it or of `stop`: it finds this one's time, or has left
        its own to be found. Python lets it come only where something is called, so not between the two below."""
        now = time.monotonic()
        before, self._heard_at = self._heard_at, now
        if now - before >= SIGNAL_ECHO_S:
            self.stop()


@contextmanager
def catching_signals(stop: Callable[[], object]) -> Generator[None]:
    """Inside this, SIGTERM, SIGINT and SIGHUP call `stop`. On the main thread only.

    Python's plain handlers, so that a signal between the start of the process and that of its event loop counts.
    """
    ear = Ear(stop)
    before = {which: signal.signal(which, lambda *_: ear.hear()) for which in stop_signals()}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
