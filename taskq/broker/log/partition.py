"""One partition: its segments in order, appended to by many processes and threads, read by many more.

Appending takes the partition's flock, writes one batch, and publishes the new end in the head (head.py). About three
microseconds, of which two are the kernel's. Reading takes no lock: a `Cursor` walks the segments up to the end the head
shows.

Which lock guards what: `_mutex` keeps this process's threads apart, the flock on the head's descriptor keeps
processes apart, and both are held for an append, in this order. `_sync_mutex` is held while syncing, so that one fsync
serves all threads that wait; whoever holds it waits for neither of the other two. What is cached here (the
open segment and the end as this process last saw it) is valid as long as the head's generation is the cached one.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from taskq.broker.log import names
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files
from taskq.broker.log.head import GENERATION, HEAD_BYTES, INTENT, WAITING, Head, HeadState, Steady
from taskq.broker.log.index import ENTRY, INDEX_INTERVAL_BYTES
from taskq.broker.log.locks import EXCLUSIVE, TRY, UNLOCK, close_lockable, flock, lock, open_lockable, unlock
from taskq.broker.log.recovery import recover, remove_segment, segment_bases
from taskq.broker.port import PartitionBounds, WouldBlock
from taskq.errors import BrokerUnavailable, StorageError, StorageFull, TopicNotFound

SEGMENT_BYTES_MAX = 1024 * 1024 * 1024  # Kafka's log.segment.bytes; positions must fit the index's int32

_log = logging.getLogger("taskq.log")


class Partition:
    """A partition, opened. Thread-safe.

    `wake(bits)` is called, under the lock, when an append begins that somebody waits for; `recovered(end)`, under it
    too, when the log's end had to be found anew.
    """

    __slots__ = (
        "_appended",
        "_directory",
        "_failure",
        "_files",
        "_generation",
        "_head",
        "_head_fd",
        "_index_fd",
        "_is_directory_synced",
        "_log_fd",
        "_mutex",
        "_next_offset",
        "_open_base",
        "_position",
        "_publish",
        "_pwrite",
        "_segment_bytes_max",
        "_steady",
        "_sync_mutex",
        "_synced",
        "_wake",
        "_words",
        "name",
    )

    def __init__(
        self,
        files: Files,
        directory: str,
        name: str,
        wake: Callable[[int], None],
        recovered: Callable[[int], None],
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> None:
        self.name = name
        self._files = files
        self._directory = directory
        self._wake = wake
        self._segment_bytes_max = segment_bytes_max
        self._pwrite = files.pwrite
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        self._failure: StorageError | None = None
        self._generation = -1
        self._appended = self._synced = 0
        self._is_directory_synced = False
        self._open_base = -1
        self._log_fd = self._index_fd = -1
        self._position = self._next_offset = -1
        self._steady = Steady(-1, -1, 0, 0, 0)
        try:
            self._head_fd = open_lockable(files, names.head(directory), create=True)
        except FileNotFoundError:
            raise TopicNotFound(f"{name}: its directory {directory} is gone; was the topic deleted?") from None
        except OSError as error:
            raise BrokerUnavailable(f"{name}: can't open {names.head(directory)}: {error.strerror}") from error
        try:
            self._head = self._open_head(recovered)
        except OSError as error:
            close_lockable(files, self._head_fd)
            raise storage_error(name, directory, error) from error
        self._words = self._head.words
        self._publish = self._head.publish

    def _open_head(self, recovered: Callable[[int], None]) -> Head:
        lock(self._head_fd)
        try:
            if self._files.size(self._head_fd) < HEAD_BYTES:
                # Written, not only made longer: a store to mapped memory for which the disk has no room is a SIGBUS.
                self._files.pwrite(self._head_fd, bytes(HEAD_BYTES), 0)
            mapped_fd = self._files.open(names.head(self._directory))
            try:
                head = Head(self._files.map_shared(mapped_fd, HEAD_BYTES))
            finally:
                self._files.close(mapped_fd)
            if not head.is_valid():
                report = recover(self._files, self._directory)
                if report.bytes_cut:
                    _log.warning("%s: cut %d bytes: %s", self.name, report.bytes_cut, report.reason)
                recovered(report.state.next_offset)
                head.reset(report.state)
            return head
        finally:
            unlock(self._head_fd)

    # -- appending

    def append(self, batch: bytes, count: int, *, wait: bool = True) -> int:
        """Append one encoded batch of `count` records; return its base offset. Visible to all when it returns.

        `batch` lacks its base offset, as batch.encode_one leaves it. Raises StorageFull, after which nothing has
        changed; StorageError for any other failure; WouldBlock if `wait` is false and a lock is taken.
        """
        if not self._mutex.acquire(wait):
            raise WouldBlock
        try:
            head_fd, words = self._head_fd, self._words
            try:
                flock(head_fd, EXCLUSIVE if wait else TRY)
            except BlockingIOError:
                raise WouldBlock from None
            except ValueError:
                raise self._closed() from None
            try:
                generation = words[GENERATION]
                if generation != self._generation or words[INTENT] != generation:
                    self._refresh()
                if self._failure is not None:
                    raise self._failure
                waiting = words[WAITING]
                if waiting:  # first, so that they wake up while this is written; they will wait for the lock
                    words[WAITING] = 0
                    self._wake(waiting)
                size = len(batch) + 8
                if self._position + size > self._segment_bytes_max and self._position:
                    self._roll(wait)
                offset, position = self._next_offset, self._position
                words[INTENT] = words[GENERATION] + 1
                try:
                    written = self._pwrite(self._log_fd, offset.to_bytes(8, "big") + batch, position)
                    if written != size:
                        raise OSError(errno.ENOSPC, f"{written} of {size} bytes written")
                    if position - self._steady.index_position >= INDEX_INTERVAL_BYTES or not position:
                        self._index(offset + count - 1, position)
                except OSError as error:
                    raise self._undo(error) from error
                self._next_offset = offset + count
                self._position = position + size
                self._generation = self._publish(position + size, offset + count, self._steady)
                self._appended += 1
            finally:
                flock(head_fd, UNLOCK)
        finally:
            self._mutex.release()
        return offset

    def _index(self, last_offset: int, position: int) -> None:
        base, size = self._steady.segment_base, self._steady.index_size
        self._pwrite(self._index_fd, ENTRY.pack(last_offset - base, position), size)
        self._steady = self._steady.with_index(position, size + ENTRY.size)

    def _undo(self, error: OSError) -> StorageFull | StorageError:
        """Take back an append that failed: the log ends where it ended before, or refuses further writes."""
        self._generation = -1  # what is cached may be wrong: the next append reads the head again
        try:
            self._files.truncate(self._log_fd, self._position)
        except OSError as second:
            # `intent` stays ahead of the generation, so whoever appends next cuts the tail first.
            self._failure = StorageError(f"{self.name}: {error.strerror}, and the tail can't be cut: {second.strerror}")
            return self._failure
        self._head.abandon()
        failure = storage_error(self.name, self._directory, error)
        if isinstance(failure, StorageError):
            self._failure = failure
        return failure

    def _refresh(self) -> None:
        """Bring the cache up to the head; cut what a writer that died left behind. Under both locks."""
        state = self._head.state()
        try:
            if state.segment_base != self._open_base:
                self._open_segment(state.segment_base)
            if self._head.is_interrupted:
                self._clean_up(state)
        except OSError as error:
            raise storage_error(self.name, self._directory, error) from error
        self._steady = Steady.of(state)
        self._position, self._next_offset = state.position, state.next_offset
        self._generation = self._words[GENERATION]

    def _clean_up(self, state: HeadState) -> None:
        """Cut what a writer left that died while appending, and remove the segment that one was about to begin."""
        for base in segment_bases(self._files, self._directory):
            if base > state.segment_base:
                remove_segment(self._files, self._directory, base)
        excess = self._files.size(self._log_fd) - state.position
        self._files.truncate(self._log_fd, state.position)
        self._head.abandon()
        _log.warning("%s: a writer died while appending; cut %d bytes it left", self.name, excess)

    def _open_segment(self, base: int) -> None:
        """Append to segment `base` from now on."""
        log_fd = self._files.open(names.log(self._directory, base), create=True)
        try:
            index_fd = self._files.open(names.index(self._directory, base), create=True)
        except OSError:
            self._files.close(log_fd)
            raise
        with self._sync_mutex:  # nobody may be syncing what is closed here
            old = self._log_fd, self._index_fd
            self._log_fd, self._index_fd, self._open_base = log_fd, index_fd, base
        for fd in old:
            if fd >= 0:
                self._files.close(fd)

    def _roll(self, wait: bool) -> None:
        """Begin a new segment at the next offset. The old one is synced first: recovery scans only the last.

        What ends it before the head names the new segment leaves `intent` ahead, so the next append removes the file.
        """
        if not wait:
            raise WouldBlock
        self._sync_fd(self._log_fd)
        base, start = self._next_offset, self._steady.start_offset
        self._head.begin()
        self._generation = -1
        try:
            self._open_segment(base)
            self._files.sync_directory(self._directory)
        except OSError as error:
            raise storage_error(self.name, self._directory, error) from error
        self._position = 0
        self._steady = Steady.of(HeadState(base, 0, base, -1, 0, start))
        self._generation = self._publish(0, base, self._steady)

    # -- durability

    @property
    def needs_sync(self) -> bool:
        """Whether this process has appended anything since its last `sync`."""
        return self._appended > self._synced

    def sync(self) -> None:
        """Return once everything this process has appended is on stable storage. Raises StorageError, then for good.

        A thread that comes while another syncs waits, and often finds its own append covered: group commit.
        """
        wanted = self._appended
        with self._sync_mutex:
            if self._synced >= wanted:
                return
            covered = self._appended
            self._sync_fd(self._log_fd)
            if not self._is_directory_synced:  # the file may be new, by whomever: its name must last as well
                self._sync_directory()
            self._synced = covered

    def _sync_directory(self) -> None:
        try:
            self._files.sync_directory(self._directory)
        except OSError as error:
            raise storage_error(self.name, self._directory, error) from error
        self._is_directory_synced = True

    def _sync_fd(self, fd: int) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._files.sync(fd)
        except OSError as error:
            self._failure = StorageError(
                f"{self.name}: fsync of {self._directory} failed: {error.strerror}. What was published since the last "
                "one may be lost; writes are refused until the broker is reopened"
            )
            raise self._failure from error

    # -- reading

    def end(self) -> int:
        """The offset the next record will get: all below it can be read."""
        return self._head.next_offset()

    def bounds(self) -> PartitionBounds:
        state = self._head.state()
        return PartitionBounds(state.start_offset, state.next_offset)

    def size_bytes(self) -> int:
        """Bytes of the log's segments on disk."""
        return sum(
            os.stat(names.log(self._directory, base)).st_size for base in segment_bases(self._files, self._directory)
        )

    def cursor(self, offset: int) -> Cursor:
        """A place to read on from. Below the start it is the start."""
        return Cursor(self._files, self._directory, self._head, offset)

    def wait_for_append(self, mask: int) -> None:
        """Ask for `wake(mask)` to be called at the next append, whoever makes it. Waits for one under way."""
        if self._head.is_waiting(mask):
            return
        with self._mutex:
            if self._head_fd < 0:
                raise self._closed()
            lock(self._head_fd)
            try:
                self._head.set_waiting(mask)
            finally:
                unlock(self._head_fd)

    def _closed(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.name}: the broker has been closed by this process; open it again")

    def close(self) -> None:
        with self._mutex:
            for fd in (self._log_fd, self._index_fd):
                if fd >= 0:
                    self._files.close(fd)
            if self._head_fd >= 0:
                close_lockable(self._files, self._head_fd)
            self._log_fd = self._index_fd = self._head_fd = -1
