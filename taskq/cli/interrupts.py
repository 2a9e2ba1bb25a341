"""How a command that does its work in pieces is interrupted: between two of them, by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager

from taskq.worker.signals import SIGNAL_ECHO_S


class Interrupts:
    """What was heard. Raises KeyboardInterrupt: at once as long as nothing has begun, else at the next `check`; and at
    once when it is heard for the second time.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._heard: signal.Signals | None = None
        self._heard_at = 0.0
        self.is_in_between = True
        """Whether the piece that was in hand when it was interrupted has ended."""

    def check(self) -> None:
        """Called before the first piece, and between any two."""
        self._has_begun = True
        if self._heard is not None:
            raise KeyboardInterrupt

    def hear(self, number: int, frame: object) -> None:
        """A handler of signals."""
        now, is_first = time.monotonic(), self._heard is None
        if is_first or now - self._heard_at >= SIGNAL_ECHO_S:
            self._heard, self._heard_at = signal.Signals(number), now
            if not (is_first and self._has_begun):
                self.is_in_between = not self._has_begun
                raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """As shells and `taskq.cli.run` have it for Ctrl-C; SIGTERM is one way to fail among others."""
        return 130 if self._heard is signal.SIGINT else 1


@contextmanager
def interrupts() -> Generator[Interrupts]:
    """Inside this, SIGINT and SIGTERM are heard. On the main thread only."""
    found = Interrupts()
    before = {which: signal.signal(which, found.hear) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield found
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
