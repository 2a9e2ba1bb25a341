"""Retention: removing the oldest segments of a partition, whole, while others append and read.

In this order, so that whatever ends it leaves a log that begins where it says: the start offset is moved in the head,
under the append lock; it is made durable in the checkpoint; segments below it are unlinked, the oldest first; the
directory is synced. Who dies in between leaves segments below the start, which the next round removes, or recovery.

A reader in another process may have one of them open, and reads it to its end; then it goes on where the log begins
now (cursor.py). What an active segment holds can go only once it is closed, so one that is old enough is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from attrs import evolve, frozen

from taskq.broker.log import checkpoint, names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, BatchHeader, read_header
from taskq.broker.log.checkpoint import Checkpoint
from taskq.broker.log.files import Files, read_whole
from taskq.broker.log.head import HeadState, Times
from taskq.broker.log.idempotence import remember
from taskq.broker.log.index import TIME_ENTRY, find, is_time_index_sound
from taskq.broker.log.partition import Partition
from taskq.broker.log.recovery import remove_segment, segment_bases
from taskq.broker.log.scan import scan
from taskq.errors import CorruptLog
from taskq.topics import TopicSettings


@frozen
class Segment:
    """What retention must know of a closed segment."""

    base: int
    end: int
    """The offset after its last."""
    size_bytes: int
    timestamp_max_ms: int
    """Of its records; -1 if it has none any more."""


def removable(
    segments: Sequence[Segment], active_bytes: int, settings: TopicSettings, now_ms: int, finished: int
) -> list[Segment]:
    """Which of a partition's closed `segments`, in order, are to be removed; the active one has `active_bytes`. Pure.

    `finished`: below this offset, all that have a say have finished everything.
    """
    going: list[Segment] = []
    left = active_bytes + sum(segment.size_bytes for segment in segments)
    for segment in segments:
        is_old = 0 <= settings.retention_ms < now_ms - segment.timestamp_max_ms
        is_too_much = 0 <= settings.retention_bytes <= left - segment.size_bytes
        if segment.end > finished and settings.unfinished == "keep":
            break
        if not (is_old or is_too_much):
            break
        left -= segment.size_bytes
        going.append(segment)
    return going


def clean(files: Files, partition: Partition, settings: TopicSettings, now_ms: int, finished: int) -> list[Segment]:
    """Remove what is to be removed from a partition; return that. Raises OSError or a BrokerError.

    Two processes must not do it at once.
    """
    directory = partition.directory
    roll_if_old(files, partition, settings, now_ms)
    _remove_below(files, partition, partition.bounds().start)  # what another began to remove, and died
    active = partition.head.state()
    bases = [base for base in segment_bases(files, directory) if base < active.segment_base]
    segments: list[Segment] = []
    for base, end in pairwise([*bases, active.segment_base]):
        size = files.size_of(names.log(directory, base))
        segments.append(Segment(base, end, size, timestamp_max(files, directory, base)))
        if len(removable(segments, 1 << 62, settings, now_ms, finished)) < len(segments):
            segments.pop()  # not even if all after it were as large as can be: so none after it
            break
    rest = sum(files.size_of(names.log(directory, base)) for base in bases[len(segments) :]) + active.position
    going = removable(segments, rest, settings, now_ms, finished)
    if going:
        with suppress(CorruptLog):  # a producer whose batches can't be read is one that is not known
            remember(files, partition, active, now_ms)
        _begin_at(files, partition, going[-1].end)
        _remove_below(files, partition, going[-1].end)
    return going


def roll_if_old(files: Files, partition: Partition, settings: TopicSettings, now_ms: int) -> None:
    """Close the active segment if it is due by `segment_ms`, or everything in it is old enough to go."""
    state, times = partition.head.state(), partition.head.times()
    if not state.position:
        return
    first_ms = _first_timestamp_ms(files, names.log(partition.directory, state.segment_base))
    all_old = 0 <= settings.retention_ms < now_ms - times.timestamp_max_ms
    if all_old or (first_ms is not None and now_ms - first_ms > settings.segment_ms):
        partition.roll()


def _first_timestamp_ms(files: Files, path: str) -> int | None:
    try:
        fd = files.open(path, write=False)
    except FileNotFoundError:
        return None
    try:
        raw = files.pread(fd, HEADER_BYTES, 0)
        return read_header(raw, 0).max_timestamp_ms if len(raw) == HEADER_BYTES else None
    except BadBatch:
        return None
    finally:
        files.close(fd)


def _begin_at(files: Files, partition: Partition, start: int) -> None:
    """Have the log begin at `start`, also after a power cut."""
    directory = partition.directory
    with partition.undeleted():
        state = partition.head.state()
        state = evolve(state, start_offset=max(state.start_offset, min(start, state.next_offset)))
        partition.head.republish(state)
    # One that is there is as true as ever, but for the start. Else: a segment is on stable storage before the next one
    # is begun, so all before the active one is.
    base, known = state.segment_base, checkpoint.read(files, directory)
    empty = Checkpoint(HeadState(base, 0, base, -1, 0, start), Times())
    partition.keep_checkpoint(known if known is not None and known.state.segment_base == base else empty)
    files.sync_directory(directory)


def _remove_below(files: Files, partition: Partition, start: int) -> None:
    """Remove the segments all of whose offsets are below `start`."""
    directory = partition.directory
    bases = segment_bases(files, directory)
    gone = [base for base, end in pairwise(bases) if end <= start]
    for base in gone:
        remove_segment(files, directory, base, partition.undeleted())
    if gone:
        files.sync_directory(directory)


def timestamp_max(files: Files, directory: str, base: int) -> int:
    """The largest timestamp in a closed segment; -1 if no record is left in it.

    The time index names the batch that has it. The log is asked whether it does, and whether a later one has a larger;
    where the index is missing or wrong, the whole log is.
    """
    log_fd = files.open(names.log(directory, base), write=False)
    try:
        found = _by_index(files, directory, base, log_fd)
        if found is None:
            found = _largest_from(files, log_fd, 0, base)
        if found is None:  # it is damaged: when it was last written to is the best guess, as in Kafka
            found = files.stamp(names.log(directory, base))[1] // 1_000_000
        return found
    finally:
        files.close(log_fd)


def _by_index(files: Files, directory: str, base: int, log_fd: int) -> int | None:
    time_index = index = b""
    with suppress(FileNotFoundError):
        time_index = read_whole(files, names.timeindex(directory, base))
        index = read_whole(files, names.index(directory, base))
    if not time_index or not is_time_index_sound(time_index):
        return None
    timestamp_ms, relative = TIME_ENTRY.unpack_from(time_index, len(time_index) - TIME_ENTRY.size)
    try:
        position = find(files, log_fd, index, base, base + relative, 1 << 62)
        raw = files.pread(log_fd, HEADER_BYTES, position)
        if len(raw) < HEADER_BYTES:  # the index names an offset past the segment's end
            return None
        header = read_header(raw, 0)
    except BadBatch:
        return None
    if header.max_timestamp_ms != timestamp_ms or header.next_offset != base + relative + 1:
        return None
    return _largest_from(files, log_fd, position, header.base_offset)


def _largest_from(files: Files, log_fd: int, position: int, offset: int) -> int | None:
    """The largest timestamp from the batch at `position` on; -1 if there are no records, None if there is damage."""
    largest = -1

    def look(_: int, header: BatchHeader) -> None:
        nonlocal largest
        if header.record_count:
            largest = max(largest, header.max_timestamp_ms)

    return largest if not scan(files, log_fd, position, offset, look).reason else None
