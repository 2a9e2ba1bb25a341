"""How this process takes signals, for as long as a test needs it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

Handler = signal.Handlers | Callable[[int, FrameType | None], object]


@contextmanager
def handled(number: signal.Signals, how: Handler) -> Generator[None]:
    """What is ignored here is ignored by children too, and what is handled is their default."""
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)
