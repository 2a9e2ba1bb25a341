"""Whether the worker's event loop lives: an `async def` task that never waits, or blocks in a call, keeps it from all
others, and nothing on the loop can tell. So the poller's thread asks.

Once a second, while there is work, it has a callback called on the loop. While that has not come back the loop is
silent: after LOOP_SILENT_S_MAX seconds an error is logged, once, with what the loop's thread is doing, and `/healthz`
fails until the loop lives again. C code that keeps the interpreter for itself can't be seen: nobody can look then.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from taskq.context import identify
from taskq.message import format_id
from taskq.text import printable
from taskq.worker.work import Item

LOOP_SILENT_S_MAX = 5.0
"""A task that keeps the loop this long is no accident of scheduling, and health checks time out about then."""

ASK_S = 1.0
NAMED_MAX = 10
"""Invocations named in the log message."""

_log = logging.getLogger("taskq.worker")


class LoopWatch:
    """`start` is called on the loop, `tick` by the poller, the others by anybody. `running` says what the loop runs."""

    def __init__(self, running: Callable[[], list[Item]]) -> None:
        self._running = running
        self._call_soon: Callable[[Callable[[], None]], object] | None = None
        self._thread = 0
        self._next_ask = 0.0
        self._asked_at: float | None = None
        """Since when (monotonic) an answer is due. Set by the poller, reset on the loop."""
        self._told: float | None = None
        """The last `_asked_at` of which it was told that no answer came. Set by the poller."""

    def start(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._thread = threading.get_ident()
        self._call_soon = call_soon

    def tick(self, now: float) -> None:
        """Ask, or see how long it has not answered."""
        asked_at = self._asked_at
        if asked_at is None:
            if now >= self._next_ask and self._call_soon is not None:
                self._next_ask = now + ASK_S
                self._asked_at = now
                with suppress(RuntimeError):  # the loop has ended
                    self._call_soon(self._answer)
        elif now - asked_at >= LOOP_SILENT_S_MAX and self._told != asked_at:
            self._told = asked_at
            self._tell(now - asked_at)

    def _answer(self) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is not None and asked_at == self._told:
            _log.warning("the event loop lives again, after %.1f s", time.monotonic() - asked_at)

    def silent_s(self) -> float:
        """For how long it has not answered."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def complaint(self) -> str:
        """Why the process is not well; empty if it is."""
        silent_s = self.silent_s()
        return f"the event loop has not answered for {silent_s:.0f} s" if silent_s >= LOOP_SILENT_S_MAX else ""

    def _tell(self, silent_s: float) -> None:
        names = [
            printable(f"{item[0].task.name}[{format_id(identify(item[1], item[2], item[3].tp))}]")
            for item in self._running()
        ]
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        frame = sys._current_frames().get(self._thread)  # pyright: ignore[reportPrivateUsage] - it is documented
        _log.error(
            "the event loop has not answered for %.1f s: something on it blocks. It runs %s%s; its thread is at\n%s",
            *(silent_s, ", ".join(names[:NAMED_MAX]) or "no invocation", more),
            "".join(traceback.format_stack(frame)).rstrip() if frame else "?",
        )
