"""The thread that makes appends durable every so many milliseconds: `durability="interval:<ms>"`.

It sleeps until there is something to sync. It never exits while publishing goes on: a partition whose fsync failed
refuses writes from then on and says why (partition.py), and the others are served as before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from taskq.broker.log.partition import Partition
from taskq.errors import StorageError

_log = logging.getLogger("taskq.log")


class Flusher:
    """Started by the first `touch`, one for each opened data directory."""

    def __init__(self, partitions: Callable[[], Iterable[Partition]], interval_s: float) -> None:
        self._partitions = partitions
        self._interval_s = interval_s
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self.is_dirty = False
        """Whether a `touch` is still to be served. Read it first: `touch` costs more."""

    def touch(self) -> None:
        """Something was appended: sync it within the interval."""
        with self._mutex:
            self.is_dirty = True
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="taskq-flusher", daemon=True)
                self._thread.start()
        self._dirty.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._dirty.wait()
            self._closing.wait(self._interval_s)
            self._dirty.clear()
            self.is_dirty = False  # before the sync: an append from here on touches again
            self.sync()

    def sync(self) -> None:
        """Sync every partition that needs it now."""
        for partition in self._partitions():
            if partition.needs_sync:
                try:
                    partition.sync()
                except StorageError as error:
                    _log.error("%s", error)
                except Exception:  # whatever it is: the others must be synced, and this one again
                    _log.exception("%s could not be synced", partition.name)

    def close(self) -> None:
        """Sync what is left and end the thread."""
        self._closing.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        self.sync()
