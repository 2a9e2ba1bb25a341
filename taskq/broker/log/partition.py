"""One partition: its segments in order, appended to by many processes and threads, read by many more.

Appending takes the partition's flock, writes one batch, and publishes the new end in the head (head.py). About three
microseconds, of which two are the kernel's. Reading takes no lock: a `Cursor` walks the segments up to the end the head
shows.

Which lock guards what: `_mutex` keeps this process's threads apart, the flock on the head's descriptor keeps
processes apart, and both are held for an append, in this order. The syncer's mutex and its flock (durability.py) are
taken after these or alone, never before them. What is cached here (the open segment and the end as this process last
saw it) is valid as long as the head's generation is the cached one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from taskq.broker.log import checkpoint
from taskq.broker.log.checkpoint import CHECKPOINT_BYTES, Checkpoint
from taskq.broker.log.durability import Syncer, SyncFailed
from taskq.broker.log.exclusive import LockablePartition
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files
from taskq.broker.log.head import (
    GENERATION,
    INTENT,
    NAMED,
    NOTICE,
    SETTINGS,
    SYNCED,
    TIMESTAMP_MAX,
    TIMESTAMP_MAX_OFFSET,
    WAITING,
    HeadState,
    Notice,
    Steady,
    Times,
)
from taskq.broker.log.index import INDEX_INTERVAL_BYTES
from taskq.broker.log.locks import EXCLUSIVE, TRY, UNLOCK, at_once, attempts, close_lockable, flock
from taskq.broker.log.opening import clean_up, cut_tail, open_head
from taskq.broker.log.segment import OPEN, ActiveSegment
from taskq.broker.port import WouldBlock
from taskq.errors import BrokerError, StorageError

SEGMENT_BYTES_MAX = 1024 * 1024 * 1024  # Kafka's log.segment.bytes; positions must fit the index's int32

Admit = Callable[[], int | None]

_log = logging.getLogger("taskq.log")


class Partition(LockablePartition):
    """A partition, opened. Thread-safe.

    `wake(bits)` is called, under the lock, when an append begins that somebody waits for; `recovered(end)`, under it
    too, when the log's end had to be found anew: it returns what had to be said of commits beyond that end;
    `altered()`, under it too, before the first append and when the topic's settings have changed: it returns the size
    of segments, or None where that is as it was.
    """

    __slots__ = (
        "_altered",
        "_appended",
        "_attempts",
        "_attempts_at_once",
        "_checkpointed",
        "_failure",
        "_generation",
        "_next_offset",
        "_position",
        "_publish",
        "_pwrite",
        "_segment",
        "_segment_bytes_max",
        "_settings",
        "_steady",
        "_syncer",
        "_wake",
        "_words",
        "is_dirty_for_good",
    )

    def __init__(
        self,
        files: Files,
        directory: str,
        name: str,
        wake: Callable[[int], None],
        recovered: Callable[[int], Sequence[str]],
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        altered: Callable[[], int | None] = lambda: None,
    ) -> None:
        head_fd, head = open_head(files, directory, name, recovered)
        super().__init__(files, directory, name, head, head_fd)
        self._wake = wake
        self._altered = altered
        self._segment_bytes_max = segment_bytes_max
        self._pwrite = files.pwrite
        self._attempts = attempts(self._mutex, wait=True)
        self._attempts_at_once = attempts(self._mutex, wait=False)
        self._failure: StorageError | None = None
        self._generation = -1
        self._appended = 0
        self._checkpointed: tuple[int, int] | None = None
        self._segment: ActiveSegment | None = None
        self._position = self._next_offset = -1
        self._steady = Steady(-1, -1, 0, 0, 0)
        self._settings = -1
        self.is_dirty_for_good = False
        """Whether nobody will sync what is appended, as with durability "os"."""
        self._words = head.words
        self._publish = self._head.publish
        self._syncer = Syncer(files, directory, name, self._head)

    # -- appending

    def append(  # noqa: C901, PLR0912, PLR0915 - a frame more would be felt
        self, batch: bytes, count: int, timestamp_ms: int, *, wait: bool = True, admit: Admit | None = None
    ) -> int:
        """Append one encoded batch of `count` records; return its base offset. Visible to all when it returns.
        `batch` lacks its base offset; `timestamp_ms` is its largest timestamp. `admit`, called under the locks, returns
        the offset at which this very batch is in the log already, or raises what speaks against it. Raises StorageFull,
        after which nothing has changed; StorageError; TopicNotFound; WouldBlock if it would have to, and not `wait`.
        """
        is_ours = False
        try:
            for is_ours in self._attempts if wait else self._attempts_at_once:  # noqa: B007
                break
            if not is_ours:
                raise WouldBlock
            head_fd, words = self._head_fd, self._words
            if head_fd < 0:
                raise self._closed()
            try:  # from before it is locked: see locks.py
                try:
                    flock(head_fd, EXCLUSIVE if wait else TRY)
                except BlockingIOError:
                    raise WouldBlock from None
                generation = words[GENERATION]
                if generation != self._generation or words[INTENT] != generation:
                    self._refresh(wait)
                if admit is not None and (found := admit()) is not None:
                    self._appended = max(self._appended, found + count)  # `sync` must cover it, whoever appended it
                    return found
                waiting = words[WAITING]
                if waiting:  # first, so that they wake up while this is written; they will wait for the lock
                    words[WAITING] = 0
                    self._wake(waiting)
                size = len(batch) + 8
                if self._position + size > self._segment_bytes_max and self._position:
                    self._roll(wait)
                segment = self._segment
                assert segment is not None
                offset, position = self._next_offset, self._position
                words[INTENT] = words[GENERATION] + 1
                try:
                    written = self._pwrite(segment.log_fd, offset.to_bytes(8, "big") + batch, position)
                    if written != size:
                        raise OSError(errno.ENOSPC, f"{written} of {size} bytes written")
                    end = offset + count
                    if timestamp_ms > words[TIMESTAMP_MAX]:
                        words[TIMESTAMP_MAX], words[TIMESTAMP_MAX_OFFSET] = timestamp_ms, end - 1
                    if position - self._steady.index_position >= INDEX_INTERVAL_BYTES or not position:
                        self._steady = segment.index(self._head, self._steady, end - 1, position)
                except OSError as error:
                    raise self._undo(segment, error) from error
                generation = self._publish(position + size, end, self._steady)
                self._next_offset = self._appended = end
                self._position = position + size
                self._generation = generation  # last: whatever ends this before, the next append looks at the head
            finally:
                flock(head_fd, UNLOCK)
        finally:
            if is_ours:
                self._mutex.release()
        return offset

    def _undo(self, segment: ActiveSegment, error: OSError) -> BrokerError:
        """Take back an append that failed: the log ends where it ended before, or refuses further writes."""
        self._generation = -1  # what is cached may be wrong: the next append reads the head again
        try:
            cut_tail(self._files, segment.log_fd, self._head, self._position)
        except OSError as second:
            # `intent` stays ahead of the generation, so whoever appends next cuts the tail first.
            self._failure = StorageError(f"{self.name}: {error.strerror}, and the tail can't be cut: {second.strerror}")
            return self._failure
        failure = storage_error(self.name, self._directory, error)
        if isinstance(failure, StorageError):
            self._failure = failure
        return failure

    def _refresh(self, wait: bool = True) -> None:
        """Bring the cache up to the head; cut what a writer that died left behind. Under both locks."""
        self._check_failure()
        if self._head.is_interrupted and not wait:  # to cut it takes an fsync
            raise WouldBlock
        notice = self._words[NOTICE]
        if notice & Notice.DELETED:
            raise self._gone()
        if notice & Notice.FAILED:
            raise StorageError(
                f"{self.name}: an fsync failed in another process. Writes are refused until the broker is reopened"
            )
        state = self._head.state()
        try:
            if (settings := self._words[SETTINGS]) != self._settings:
                self._segment_bytes_max = self._altered() or self._segment_bytes_max
                self._settings = settings
            if self._segment is None or state.segment_base != self._segment.base:
                with self._opened(state.segment_base) as segment:
                    self._use(segment, wait)
            if self._head.is_interrupted:
                clean_up(self._files, self._directory, self.name, self._head, state)
        except OSError as error:
            raise storage_error(self.name, self._directory, error) from error
        if not state.position:  # whoever rolled may have died before it said so
            self._head.set_times(Times())
        self._steady = Steady.of(state)
        self._position, self._next_offset = state.position, state.next_offset
        self._generation = self._words[GENERATION]
        self._syncer.begin(self._appended)

    @contextmanager
    def _opened(self, base: int) -> Generator[ActiveSegment]:
        """A segment that is to be used. It is closed if it is not."""
        segment = ActiveSegment(self._files, self._directory, base)
        try:
            yield segment
        finally:
            if segment is not self._segment:
                segment.close()

    def _use(self, segment: ActiveSegment, wait: bool = True) -> None:
        """Append to `segment` from now on. The head names it by now: else whoever comes next removes its files."""
        mutex: AbstractContextManager[object] = self._syncer.mutex if wait else at_once(self._syncer.mutex)
        with mutex:  # nobody may be syncing what is closed here
            old, self._segment = self._segment, segment
        if old is not None:
            old.close()
        OPEN.add(self)

    def _roll(self, wait: bool) -> None:
        """Begin a new segment at the next offset. The old one is synced first: recovery scans only the last.

        What ends it before the head names the new segment leaves `intent` ahead, so the next append removes the file.
        Until then the old one stays ours.
        """
        if not wait:
            raise WouldBlock
        assert self._segment is not None
        base, start = self._next_offset, self._steady.start_offset
        self._sync_log(self._segment)
        if not self._words[NAMED]:  # or the next segment's name might outlive this one's
            self._syncer.sync_name()
        self._generation = -1
        self._head.begin()
        try:
            self._segment.index_time(self._head)
            self._segment.sync_indexes()
            with self._opened(base) as segment:
                self._files.sync_directory(self._directory)
                state = HeadState(base, 0, base, -1, 0, start)
                self._words[SYNCED], self._words[NAMED] = base, 1
                generation = self._publish(0, base, Steady.of(state))
                self._head.set_times(Times())
                self._use(segment)
        except OSError as error:
            raise storage_error(self.name, self._directory, error) from error
        self._position, self._steady, self._generation = 0, Steady.of(state), generation
        with suppress(OSError):  # recovery would scan a little more
            checkpoint.write(self._files, self._directory, Checkpoint(state, Times()))
            self._checkpointed = (base, 0)

    # -- durability

    @property
    def needs_sync(self) -> bool:
        """Whether something that this process has appended may not be on stable storage, and can still be synced."""
        return not self._syncer.is_durable(self._appended) and self._failure is None and not self.is_deleted

    def sync(self) -> None:
        """Return once everything this process has appended is on stable storage. Raises StorageError, then for good.

        A thread or process that comes while another syncs waits, and often finds its own append covered: group commit.
        """
        self._check_failure()
        wanted = self._appended
        if self._syncer.is_durable(wanted):
            return
        if self._segment is None:  # it was shut, see there
            with self.locked():
                self._refresh()
        try:
            self._syncer.sync(lambda: self._segment, wanted)
        except SyncFailed as failure:
            self._refuse(failure)
            raise
        done, base = self._checkpointed, self._steady.segment_base
        if done is None:
            self._checkpointed = (base, self._position)
        elif base != done[0] or self._position - done[1] >= CHECKPOINT_BYTES:
            self._write_checkpoint()

    def _check_failure(self) -> None:
        """Raise what has failed for good, as a new error: the old one would collect the traces of all who got it."""
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))

    def _sync_log(self, segment: ActiveSegment) -> None:
        try:
            self._syncer.sync_log(segment)
        except SyncFailed as failure:
            self._failure = failure
            self._head.notify(Notice.FAILED)
            raise

    def _refuse(self, failure: StorageError) -> None:
        """Refuse writes from here on, in every process."""
        self._failure = failure
        with suppress(BrokerError), self.locked():
            self._generation = -1  # so that the next append looks, and hears of it
            if self._words[NOTICE] & Notice.FAILED:  # else it has been repaired already, at our cost
                self._head.notify(Notice.FAILED)

    def _write_checkpoint(self) -> None:
        """Note how far the log is sound and synced. What goes wrong costs recovery a longer scan, nothing else."""
        try:
            with self._mutex:
                if self._head_fd >= 0 and self._segment is not None and self._failure is None:
                    self._checkpoint(self._segment)
        except SyncFailed as failure:
            self._refuse(failure)
        except (OSError, BrokerError) as error:
            _log.debug("%s: no checkpoint: %s", self.name, error)

    def _checkpoint(self, segment: ActiveSegment) -> None:
        with self._flocked():
            state, times = self._head.state(), self._head.times()
        if state.segment_base != segment.base:
            return
        self._syncer.sync(lambda: segment, state.next_offset)  # its name too: a checkpoint without a log would be a gap
        with self._syncer.mutex:
            segment.sync_indexes()
        self._keep_checkpoint(Checkpoint(state, times))
        self._checkpointed = (state.segment_base, state.position)

    # -- keeping up, closing

    def roll(self) -> None:
        """Close the active segment and begin another, if there is anything in it."""
        with self.locked():
            self._refresh()
            if self._position:
                self._roll(wait=True)

    def shut(self) -> bool:
        """Close the active segment's files until the next append, if nobody uses them and all is synced; or say False.

        Called by who has another partition's locks, so it waits for nothing.
        """
        with suppress(WouldBlock), at_once(self._mutex), at_once(self._syncer.mutex):
            if self.needs_sync and not self.is_dirty_for_good:
                return False
            if self._segment is not None:
                self._segment.close()
            self._segment, self._generation = None, -1
            return True
        return False

    def close(self) -> None:
        """Note how far the log is sound, if this process has appended to it, and let go of its files."""
        if self._appended and not self.is_deleted:
            self._write_checkpoint()
        with self._mutex, self._syncer.mutex:
            OPEN.discard(self)
            if self._segment is not None:
                self._segment.close()
            self._syncer.close()
            if self._head_fd >= 0:
                close_lockable(self._files, self._head_fd)
            self._head_fd, self._segment = -1, None
