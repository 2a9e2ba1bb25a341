"""Making appends durable: one fsync serves all who wait for it, threads and processes alike.

Whoever wants its append on stable storage takes the sync lock, a flock on the partition's directory. While it waited,
the one before may have synced what it wants, since an fsync writes what anybody has written to the file; the head's
`synced` word says how far. So of many that come at once one syncs, and the next one syncs for all the others.

An fsync that fails is never tried again: the system may have dropped what it could not write, and a second call would
say that all is well. The partition refuses writes in every process until somebody opens it anew (repair.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files
from taskq.broker.log.head import NAMED, NOTICE, RECOVERIES, SYNCED, Head, Notice
from taskq.broker.log.locks import close_lockable, lock, open_lockable, unlock
from taskq.broker.log.segment import ActiveSegment
from taskq.errors import BrokerUnavailable, StorageError, TopicNotFound


class SyncFailed(StorageError):
    """An fsync failed. What was published since the last one may be lost; the partition refuses writes from here on."""


class Syncer:
    """Syncs one partition. `mutex` is held while the open segment is synced, or replaced by the next one; whoever holds
    it waits for the sync lock and for nothing else.
    """

    __slots__ = ("_directory", "_durable", "_fd", "_files", "_head", "_name", "_recoveries", "mutex")

    def __init__(self, files: Files, directory: str, name: str, head: Head) -> None:
        self._files = files
        self._directory = directory
        self._name = name
        self._head = head
        self._fd = -1
        self._recoveries: int = head.words[RECOVERIES]
        self._durable = 0
        self.mutex = threading.Lock()

    def sync(self, segment: Callable[[], ActiveSegment | None], wanted: int) -> None:
        """Return once everything below offset `wanted` is on stable storage.

        `segment` tells which one is open for appending. It is asked under the mutex, for before that another thread may
        take a new one and close the old one. Raises SyncFailed, then for good; StorageError if it could not be tried;
        TopicNotFound; BrokerUnavailable if none is open.
        """
        with self.mutex:
            if not self.is_durable(wanted):
                if self._head.words[NOTICE] & Notice.DELETED:  # and what is open here may have been closed
                    raise self._gone()
                fd = self._open()
                try:  # from before it is locked: see locks.py
                    self._lock(fd)
                    self._check_repairs()
                    if not self.is_durable(wanted):
                        self._sync(segment())
                finally:
                    unlock(fd)
                self._check_repairs()
                self._durable = max(self._durable, wanted)

    def is_durable(self, end: int) -> bool:
        """Whether all that this process has appended below offset `end` is known to be on stable storage."""
        if end > self._durable:
            words = self._head.words
            # In this order: a repair raises `synced` last, and also over what could not be read any more.
            if words[SYNCED] < end or words[RECOVERIES] != self._recoveries:
                return False
            self._durable = end
        return True

    def _check_repairs(self) -> None:
        if self._head.words[RECOVERIES] != self._recoveries:
            raise SyncFailed(f"{self._name}: an fsync failed, and another process has repaired the log. {_LOST}")

    def _sync(self, segment: ActiveSegment | None) -> None:
        if segment is None:
            raise BrokerUnavailable(f"{self._name}: closed by this process before all was on stable storage")
        words = self._head.words
        if words[NOTICE] & Notice.FAILED:
            raise SyncFailed(f"{self._name}: an fsync failed in another process; {_REFUSED}")
        state = self._head.state()
        if state.segment_base != segment.base:
            return  # ours is in a segment that has been closed: it was synced then
        self.sync_log(segment)
        if not words[NAMED]:  # the file may be new, by whomever: its name must last as well
            self.sync_name()
        words[SYNCED] = max(words[SYNCED], state.next_offset)

    def begin(self, appended: int) -> None:
        """This process is about to append again; `appended` is where its last append ended. Under the append lock."""
        if self.is_durable(appended):  # no repair so far was at its cost
            self._recoveries = self._head.words[RECOVERIES]

    def sync_log(self, segment: ActiveSegment) -> None:
        """Sync the bytes of `segment`. Raises SyncFailed, and tells all other processes."""
        try:
            self._files.sync(segment.log_fd)
        except OSError as error:
            self._head.words[NOTICE] |= Notice.FAILED
            raise SyncFailed(f"{self._name}: fsync of {self._directory} failed: {error.strerror}. {_LOST}") from error

    def sync_name(self) -> None:
        """Make the names of the files durable. Under the sync lock or the append lock."""
        try:
            self._files.sync_directory(self._directory)
        except FileNotFoundError:
            raise self._gone() from None
        except OSError as error:
            raise storage_error(self._name, self._directory, error) from error
        self._head.words[NAMED] = 1

    def _gone(self) -> TopicNotFound:
        return TopicNotFound(f"{self._name}: the topic has been deleted")

    def _open(self) -> int:
        if self._fd < 0:
            try:
                self._fd = open_lockable(self._files, self._directory, write=False)
            except FileNotFoundError:
                raise self._gone() from None
            except OSError as error:
                raise storage_error(self._name, self._directory, error) from error
        return self._fd

    def _lock(self, fd: int) -> None:
        try:
            lock(fd)
        except OSError as error:
            raise storage_error(self._name, self._directory, error) from error

    def close(self) -> None:
        if self._fd >= 0:
            close_lockable(self._files, self._fd)
            self._fd = -1


_REFUSED = "writes are refused until the broker is reopened"
_LOST = f"What was published since the last one may be lost; {_REFUSED}"
