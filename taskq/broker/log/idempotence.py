"""Idempotent append: a batch that is sent again is not a second record, whoever appended it and whatever died since.

What producers have sent (producers.py) follows from the log, so it is nowhere kept as a truth of its own. Whoever
appends for a producer reads, under the append lock, the headers of what has been appended since it last looked, by
itself or by others, and then decides. A process that is killed between its write and its acknowledgement leaves either
a batch that all can see or none, and nothing else to agree on.

Snapshots spare reading the log from its start, and keep what retention and compaction remove. `<offset>.snapshot` says
all that was known below that offset. The rules that make it safe:

- It only speaks of what is on stable storage, or a power cut could take back batches that it says are there.
- The first one is there, durably, before a partition's first idempotent append. Without one nobody has ever sent
  anything, and the log need not be read: a partition that has no idempotent producers pays nothing.
- Its name has the offset, so that an older one never takes the place of a newer one. The newest that is sound is used.
- Retention and compaction call `remember` first: segments below the newest snapshot may change, others may not. So who
  opens a closed segment looks afterwards whether a snapshot has come that is past it.
- Recovery may take back batches of which a process knows that has been running since: it counts up the head's
  `recoveries`, and everybody begins anew.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from attrs import evolve

from taskq.broker.log import names
from taskq.broker.log.batch import BASE_OFFSET, HEADER_BYTES, BadBatch, BatchHeader, read_header
from taskq.broker.log.checkpoint import CHECKPOINT_BYTES
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import UNGUARDED, Files, encode_json, read_whole, write_whole
from taskq.broker.log.head import RECOVERIES, SYNCED, Head, HeadState
from taskq.broker.log.locks import at_once, close_lockable, lock, open_lockable
from taskq.broker.log.lookup import locate
from taskq.broker.log.partition import Partition
from taskq.broker.log.producers import Producers
from taskq.broker.log.recovery import segment_bases
from taskq.broker.log.scan import scan
from taskq.errors import BrokerError, CorruptLog, StorageError

_SNAPSHOTS_KEPT = 2


def next_producer_id(files: Files, root: str) -> int:
    """An id that no producer of this data directory has had, and none will have again."""
    path = names.producer_ids(root)
    try:
        fd = open_lockable(files, names.lock_file(root), create=True)
        try:
            lock(fd)
            given = _next_id(files, path)
            write_whole(files, path, encode_json({"next": given + 1}))
            files.sync_directory(root)
        finally:
            close_lockable(files, fd)
    except OSError as error:
        raise storage_error("a new producer id", root, error) from error
    return given


def _next_id(files: Files, path: str) -> int:
    try:
        raw = read_whole(files, path)
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(raw)["next"])
    except (ValueError, LookupError, TypeError):
        raise StorageError(
            f'{path} does not say which producer ids have been given out. Write {{"next": N}} into it, with an N '
            "larger than the id of any producer that still runs"
        ) from None


class Follower:
    """Takes in what producers have sent, as far as the log has come. Not thread-safe."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self.producers = Producers()
        self.offset = -1
        """Everything below it is taken in; -1: nothing has been looked at."""
        self.passed_bytes = 0
        """Bytes of log taken in since the last snapshot."""
        self._fd = self._base = self._position = -1

    def load_newer(self) -> bool:
        """Take up the newest snapshot if it is past what is known: whether it was."""
        before = self.offset
        self.load()
        return self.offset > before

    def load(self) -> bool:
        """The same; False if there is no snapshot at all."""
        offsets = snapshot_offsets(self._files, self._directory)
        for offset in reversed(offsets):
            if offset <= self.offset:
                break
            with suppress(FileNotFoundError):
                found = Producers.decode(read_whole(self._files, names.snapshot(self._directory, offset)))
                if found is not None:
                    self.close()
                    self.offset, self.producers = found
                    break
        else:
            if self.offset < 0 and offsets:
                self.offset = 0  # none is sound: from what there is of the log
        return bool(offsets)

    def follow(self, state: HeadState) -> None:
        """Take in all up to the end that `state` says. Raises CorruptLog."""
        while self.offset < state.next_offset:
            if self._fd < 0:
                self._open(state)
            is_last = self._base == state.segment_base
            scanned = scan(
                self._files, self._fd, self._position, self.offset, self._take, state.position if is_last else None
            )
            self.passed_bytes += scanned.position - self._position
            self._position, self.offset = scanned.position, scanned.next_offset
            if scanned.reason:
                raise CorruptLog(names.log(self._directory, self._base), scanned.position, scanned.reason)
            if not is_last:
                self.close()
            elif self.offset < state.next_offset:
                reason = f"the file ends at offset {self.offset}; the log goes on to {state.next_offset}"
                raise CorruptLog(names.log(self._directory, self._base), scanned.position, reason)

    def _take(self, _position: int, header: BatchHeader) -> None:
        self.producers.add(header)

    def _open(self, state: HeadState) -> None:
        """Open the segment that holds `offset`, at the batch that does."""
        while self._fd < 0:
            bases = segment_bases(self._files, self._directory)
            if not bases:
                raise CorruptLog(self._directory, 0, f"no segment holds offset {self.offset}")
            base = max((base for base in bases if base <= self.offset), default=bases[0])
            try:
                self._fd, self._base = self._files.open(names.log(self._directory, base), write=False), base
            except FileNotFoundError:
                self.load()
                continue
            if self.offset < state.segment_base and self.load_newer():
                continue  # closed segments may have been compacted or removed: then a snapshot has what they had
            self.offset = max(self.offset, base)
            self._place(bases, state)

    def _place(self, bases: list[int], state: HeadState) -> None:
        """Find the batch at which to go on; if it is in the next segment, close this one."""
        try:
            self._position, due = locate(self._files, self._directory, self._fd, self._base, self.offset, state)
        except BadBatch as bad:
            self.close()
            raise CorruptLog(names.log(self._directory, self._base), bad.position, bad.reason) from None
        following = [base for base in bases if base > self._base]
        if self._files.size(self._fd) > self._position:
            self.offset = due  # below it, if compaction has made one batch of several
        elif following:  # what was between is gone
            self.offset = max(self.offset, following[0])
            self.close()

    def snapshot(self, now_ms: int) -> tuple[int, bytes]:
        """(offset, what is known of all below it): to be written once all of that is on stable storage."""
        self.producers.forget_expired(now_ms)
        self.passed_bytes = 0
        return self.offset, self.producers.encode(self.offset)

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1


class IdempotentAppender:
    """Appends to one partition for producers that number their batches. Thread-safe. Close it before its partition."""

    def __init__(self, files: Files, partition: Partition, now_ms: Callable[[], int] | None = None) -> None:
        self._files = files
        self._directory = partition.directory
        self._partition = partition
        self._now_ms = now_ms or _now_ms
        self._mutex = threading.Lock()
        # Guarded by the mutex:
        self._follower: Follower | None = None
        self._recoveries = -1
        self._segment_base = -1
        self._pending: tuple[int, bytes] | None = None
        """A snapshot of what may not be on stable storage yet."""

    def append(self, batch: bytes, *, wait: bool = True) -> int:
        """Append one encoded batch that has a ProducerStamp; return its base offset, which is that of the first time if
        it is sent again. `Partition.sync` makes it durable in both cases.

        Raises OutOfOrderSequence, ProducerFenced, what `Partition.append` raises, and CorruptLog if damage hides what
        producers have sent.
        """
        header = read_header(bytes(BASE_OFFSET.size) + batch[: HEADER_BYTES - BASE_OFFSET.size], 0)
        mutex: AbstractContextManager[object] = self._mutex if wait else at_once(self._mutex)
        try:
            with mutex:
                return self._append(header, batch, wait)
        except OSError as error:
            raise storage_error(self._partition.name, self._directory, error) from error

    def _append(self, header: BatchHeader, batch: bytes, wait: bool) -> int:
        if self._follower is not None and self._recoveries == self._partition.head.words[RECOVERIES]:
            self._follower.follow(self._partition.head.state())  # most of the work, before anybody has to wait
        offset = self._partition.append(
            batch,
            header.last_offset_delta + 1,
            header.max_timestamp_ms,
            wait=wait,
            admit=lambda: self._admit(header),
        )
        if wait:
            with suppress(OSError, BrokerError):  # it costs whoever opens the partition a longer look
                self._snapshot()
        return offset

    def _admit(self, header: BatchHeader) -> int | None:
        head = self._partition.head
        state = head.state()
        if self._follower is None or self._recoveries != head.words[RECOVERIES]:
            self._begin(head, state)
        assert self._follower is not None
        self._follower.follow(state)
        return self._follower.producers.check(header, self._now_ms())

    def _begin(self, head: Head, state: HeadState) -> None:
        self._close()
        for offset in snapshot_offsets(self._files, self._directory):
            if offset > state.next_offset:  # of what recovery found to be gone
                self._files.unlink(names.snapshot(self._directory, offset))
        follower = Follower(self._files, self._directory)
        if not follower.load():
            synced = head.words[SYNCED]
            write_snapshot(self._files, self._directory, synced, Producers().encode(synced))
            self._files.sync_directory(self._directory)
            follower.load()
        self._follower, self._recoveries, self._segment_base = follower, head.words[RECOVERIES], state.segment_base

    def _snapshot(self) -> None:
        """Write a snapshot if one is due and all it says is on stable storage by now."""
        follower, head = self._follower, self._partition.head
        assert follower is not None
        base = head.state().segment_base
        if self._pending is None and (base != self._segment_base or follower.passed_bytes >= CHECKPOINT_BYTES):
            self._pending, self._segment_base = follower.snapshot(self._now_ms()), base
        if self._pending is not None and self._pending[0] <= head.words[SYNCED]:
            write_snapshot(self._files, self._directory, *self._pending, self._partition.undeleted())
            self._pending = None

    def close(self) -> None:
        """Leave a snapshot, so that whoever comes next has little to look at."""
        with self._mutex, suppress(OSError, BrokerError):
            follower, head = self._follower, self._partition.head
            if follower is not None and follower.passed_bytes and self._recoveries == head.words[RECOVERIES]:
                self._pending = follower.snapshot(self._now_ms())
                self._snapshot()
            self._close()

    def _close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._follower = self._pending = None


def _now_ms() -> int:
    return int(time.time() * 1000)


# -- snapshots


def snapshot_offsets(files: Files, directory: str) -> list[int]:
    """Offsets of the snapshots in a partition's directory, ascending."""
    offsets = (names.snapshot_offset(name) for name in files.listdir(directory))
    return sorted(offset for offset in offsets if offset is not None)


def write_snapshot(
    files: Files,
    directory: str,
    offset: int,
    snapshot: bytes,
    guard: AbstractContextManager[object] = UNGUARDED,
) -> None:
    """Keep a snapshot, and remove older ones but for the last: it stands in for a newest one that is damaged.

    See `files.write_whole`; without `guard`, hold the append lock of a partition that has not been deleted.
    """
    write_whole(files, names.snapshot(directory, offset), snapshot, guard)
    older = snapshot_offsets(files, directory)[:-_SNAPSHOTS_KEPT]
    if older:
        files.sync_directory(directory)  # or one power cut could take the new names and the old files
    for old in older:
        with suppress(FileNotFoundError):
            files.unlink(names.snapshot(directory, old))


def remember(files: Files, partition: Partition, state: HeadState, now_ms: int) -> None:
    """Put what producers have sent in closed segments into a durable snapshot. Call it before these are changed or
    removed.

    Raises CorruptLog at damage, TopicNotFound, OSError.
    """
    directory = partition.directory
    follower = Follower(files, directory)
    if not follower.load() or follower.offset >= state.segment_base:
        return  # nobody has sent anything, or it is known already
    try:
        follower.follow(evolve(state, position=0, next_offset=state.segment_base))
        write_snapshot(files, directory, *follower.snapshot(now_ms), partition.undeleted())
    finally:
        follower.close()
    files.sync_directory(directory)
