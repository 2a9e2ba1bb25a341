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
from taskq.errors import StorageError, TopicNotFound

_SLOW_S = 1.0
_TELL_AGAIN_S = 30.0

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
        self._dirty_since: float | None = None
        self._syncing_since: float | None = None
        self._told: dict[str, float] = {}
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
            if self._dirty_since is None:
                self._dirty_since = time.monotonic()
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="taskq-flusher", daemon=True)
                self._thread.start()
        self._dirty.set()

    @property
    def unsynced_s(self) -> float:
        """How old the oldest append is that may not be on stable storage yet; 0 if there is none."""
        since = self._syncing_since or self._dirty_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._dirty.wait()
                self._closing.wait(self._interval_s)
                self._turn()
        except BaseException as error:
            with self._mutex:
                self.death = error
                self.is_dirty = False  # so that the next publisher comes by, and hears of it
            raise

    def _turn(self) -> None:
        self._dirty.clear()
        self._syncing_since, self._dirty_since = self._dirty_since, None
        self.is_dirty = False  # before the sync: an append from here on touches again
        is_done = self.sync()
        if (unsynced_s := self.unsynced_s) > self._interval_s + _SLOW_S:
            self._tell("", f"syncing is behind by {unsynced_s:.0f} s: a power cut would lose as much")
        if not is_done:
            with self._mutex:
                self._dirty_since, self.is_dirty = self._syncing_since or self._dirty_since, True
            self._dirty.set()
        self._syncing_since = None

    def sync(self) -> bool:
        """Sync every partition that needs it now. False: some could not be synced, and are to be tried again."""
        is_done = True
        for partition in self._partitions():
            if partition.needs_sync:
                try:
                    partition.sync()
                except TopicNotFound:
                    continue  # deleted just now
                except StorageError as error:
                    self._tell(partition.name, str(error))
                except Exception as error:  # whatever it is: the others must be synced too
                    self._tell(partition.name, f"{partition.name} could not be synced: {error!r}")
                is_done = is_done and not partition.needs_sync
        return is_done

    def _tell(self, about: str, text: str) -> None:
        """Log it, but not ten times a second."""
        now = time.monotonic()
        if now - self._told.get(about, -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
            self._told[about] = now
            _log.error("%s", text)

    def close(self) -> None:
        """Sync what is left and end the thread."""
        self._closing.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        self.sync()
