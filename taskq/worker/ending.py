"""The end of a worker process, which has a limit: where the process does not end by itself in time, it is made to.

Much can keep one from ending for which nobody should wait: threads that tasks have started, in pools of their own or in
the event loop's, which Python joins at its end; coroutines that don't heed their cancellation; a broker's call that
blocks. So whoever is done with something says how long the rest may take (`within`), each time anew; who is told to
stop at once says so (`at_once`), and that can't be taken back. A thread looks at the clock. When the time is over it
says what there is to be said, and ends the process without asking anybody: `os._exit`.

Nothing is lost by it: what is finished has been committed by then, or the broker does not answer. The kernel closes the
rest: descriptors, and with them leases and the lifelines of children.

It must be started by who owns the process; in one that merely has a worker in it, nothing is ended.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

CLOSE_S_MAX = 6.0
"""How long coroutines may take to be cancelled, and children to end (they have 5 s), when the poller has ended."""

LEAVE_S_MAX = 3.0
"""How long all else may take to end, once nothing is to be waited for any more."""

AT_ONCE_S_MAX = 1.0
"""How long a worker that is to stop at once has for it: to commit what is finished and to give up its partitions."""

SYNC_S_MAX = 30.0
"""How long the broker may take to be closed: it has something to sync, perhaps."""

WORDS_S_MAX = 0.5
"""How long the last words may take."""

_log = logging.getLogger("taskq.worker")


class Ending:
    """See the module docstring. `within` and `at_once` may be called from any thread, and from signal handlers."""

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        self._leave = leave
        self._last_words: Callable[[], object] = lambda: None
        self._told: SimpleQueue[tuple[float, bool]] = SimpleQueue()
        """Until when (monotonic), and whether that is final. Its `put` is reentrant."""

    def start(self, code: Callable[[], int], last_words: Callable[[], object]) -> None:
        """From now on end the process in time, with `code()`, and after `last_words()` if these don't take long."""
        self._last_words = last_words
        threading.Thread(target=self._run, args=(code,), name="taskq-ending", daemon=True).start()

    def drained(self) -> None:
        """What runs has ended: say so, and let the rest be closed."""
        self.within(CLOSE_S_MAX)
        self._last_words()

    def within(self, seconds: float) -> None:
        """The process has so long from now, whatever was said before."""
        self._told.put((time.monotonic() + seconds, False))

    def at_once(self) -> None:
        """The process has AT_ONCE_S_MAX from now, whatever is said later."""
        self._told.put((time.monotonic() + AT_ONCE_S_MAX, True))

    def _run(self, code: Callable[[], int]) -> None:
        speak: SimpleQueue[None] = SimpleQueue()
        # Started now: since Python 3.12 none can be any more when the interpreter waits for the threads that are left.
        speaker = threading.Thread(target=_speak, args=(speak, self._last_words), name="taskq-last-words", daemon=True)
        speaker.start()
        until = last = math.inf
        while (left_s := min(until, last) - time.monotonic()) > 0:
            with suppress(Empty):
                told, is_final = self._told.get(timeout=min(left_s, 3600.0))
                if is_final:
                    last = min(last, told)
                else:
                    until = told
        speak.put(None)
        speaker.join(WORDS_S_MAX)
        self._leave(code())


def _speak(speak: SimpleQueue[None], last_words: Callable[[], object]) -> None:
    speak.get()
    ours = (threading.current_thread(), threading.main_thread())
    names = sorted(one.name for one in threading.enumerate() if one not in ours and not one.name.startswith("taskq-"))
    _log.warning("ending without what does not end by itself%s", f": {', '.join(names)}" if names else "")
    try:
        last_words()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        logging.shutdown()
