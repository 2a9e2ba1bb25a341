"""The thread that makes appends durable every so many milliseconds: `durability="interval:<ms>"`.

It sleeps until there is something to sync. It never exits while publishing goes on: a partition whose fsync failed
refuses writes from then on and says why (partition.py), and the others are served as before. Should it end all the
same, every publisher is told: what nobody syncs must not pass for published.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from taskq.broker.log.partition import Partition
from taskq.errors import StorageError

_SLOW_S = 1.0

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
        self.dirty_since: float | None = None
        """When (monotonic) the oldest append came that may not be on stable storage yet."""
        self.death: BaseException | None = None
        """What ended the thread, if it should be running."""

    def touch(self) -> None:
        """Something was appended: sync it within the interval. Raises StorageError if nobody would."""
        with self._mutex:
            if self.death is not None:
                raise StorageError(
                    f"the thread that syncs what is published has ended ({self.death!r}); what was published last is "
                    "with the operating system only. Restart this process"
                ) from self.death
            self.is_dirty = True
            if self.dirty_since is None:
                self.dirty_since = time.monotonic()
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="taskq-flusher", daemon=True)
                self._thread.start()
        self._dirty.set()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._dirty.wait()
                self._closing.wait(self._interval_s)
                self._dirty.clear()
                since, self.dirty_since = self.dirty_since, None
                self.is_dirty = False  # before the sync: an append from here on touches again
                self.sync()
                if since is not None and (took_s := time.monotonic() - since) > self._interval_s + _SLOW_S:
                    _log.warning("syncing took %.1f s: a power cut meanwhile would have lost as much", took_s)
        except BaseException as error:
            with self._mutex:
                self.death = error
                self.is_dirty = False  # so that the next publisher comes by, and hears of it
            raise

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
