"""Looking things up in a partition's log: the batch that holds an offset, the first record of a time.

The indexes say where to begin to look, and are never trusted over the log: what an entry says is checked against the
batch it names before it is used. An index of a closed segment that is missing or not sound is made anew by whoever
needs it, and kept; the last segment's is still being written, and costs a scan.

A segment may vanish while somebody looks (retention, compaction): then they look again, from the start as it is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from taskq.broker.log import names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, BatchHeader, decode_batches, read_header
from taskq.broker.log.damage import walk
from taskq.broker.log.files import Files, read_or_empty, write_whole
from taskq.broker.log.head import Head, HeadState
from taskq.broker.log.index import ENTRY, TIME_ENTRY, IndexBuilder, begin, find_from
from taskq.broker.log.recovery import segment_bases
from taskq.broker.log.scan import scan
from taskq.errors import CorruptLog

_TRIES = 100
"""How often to look again when segments vanish. Each time another one must have gone."""


def locate(files: Files, directory: str, log_fd: int, base: int, offset: int, end: HeadState) -> tuple[int, int]:
    """The batch of segment `base` that holds `offset`: (its position, the offset it begins with).

    Of the end of the segment, if `offset` lies behind that: (position, the offset due there). Raises BadBatch, its
    position counted from the segment's start, on damage before it.
    """
    is_closed = base < end.segment_base
    start = 0, base
    if offset > base:
        start = _begin(files, directory, log_fd, base, offset, is_closed=is_closed)
    limit = files.size(log_fd) if is_closed else end.position
    try:
        found = find_from(files, log_fd, start, offset, end.next_offset)
        if found[0] <= limit:
            return found
    except BadBatch:
        pass
    # Batches were counted by what their headers say, unchecked, and that has led astray.
    walked = scan(files, log_fd, *start, lambda at, header: None, limit)
    raise BadBatch(walked.position, walked.reason or "it is not where the batches before it end")


def _begin(files: Files, directory: str, log_fd: int, base: int, offset: int, *, is_closed: bool) -> tuple[int, int]:
    """`index.begin`, with an index that is made anew if it is not sound."""
    index = read_or_empty(files, names.index(directory, base))
    found = None
    if not is_closed or _looks_sound(index, files.size(log_fd)):
        found = begin(files, log_fd, index, base, offset)
    if found is None and is_closed:
        found = begin(files, log_fd, bytes(rebuild(files, directory, base, log_fd).index), base, offset)
    return found or (0, base)


def _looks_sound(index: bytes, size: int) -> bool:
    """Whether it is worth a look: to check all the entries of a large index costs more than to check the one in use."""
    if not index or len(index) % ENTRY.size:
        return False
    first: int = ENTRY.unpack_from(index)[1]
    last: int = ENTRY.unpack_from(index, len(index) - ENTRY.size)[1]
    return first == 0 <= last < size


def rebuild(files: Files, directory: str, base: int, log_fd: int) -> IndexBuilder:
    """Make both indexes of a closed segment anew from its log, and keep them if that can be done."""
    builder = IndexBuilder(base)
    path = names.log(directory, base)
    walk(files, log_fd, path, (0, base), builder.add, lambda lost: None, files.size(log_fd), None)
    builder.add_time()
    with suppress(OSError):  # a full disk, or a directory that we may only read: what was found serves all the same
        write_whole(files, names.index(directory, base), bytes(builder.index))
        write_whole(files, names.timeindex(directory, base), bytes(builder.time_index))
        if not _is_still(files, path, log_fd):
            _remove_indexes(files, directory, base)
    return builder


def _is_still(files: Files, path: str, log_fd: int) -> bool:
    """Whether the file of this name is the one that is open: retention or compaction may have come in between."""
    try:
        return files.size_of(path) == files.size(log_fd)
    except FileNotFoundError:
        return False


def _remove_indexes(files: Files, directory: str, base: int) -> None:
    """They were made for a segment that is gone, or is another one now."""
    for path in (names.index(directory, base), names.timeindex(directory, base)):
        with suppress(FileNotFoundError):
            files.unlink(path)


# -- by time


def offset_for(files: Files, directory: str, head: Head, timestamp_ms: int) -> int:
    """The earliest offset whose record's timestamp is `timestamp_ms` or later; the end if there is none.

    Raises CorruptLog at damage in what has to be read for it.
    """
    for _ in range(_TRIES):
        state = head.state()
        bases = [base for base in segment_bases(files, directory) if base <= state.segment_base]
        try:
            return _search(files, directory, bases, state, timestamp_ms)
        except FileNotFoundError:
            continue
    raise CorruptLog(directory, 0, "its segments vanish while they are read; look with `ls`, and try again")


def _search(files: Files, directory: str, bases: Sequence[int], state: HeadState, timestamp_ms: int) -> int:
    for number, base in enumerate(bases):
        next_base = bases[number + 1] if number + 1 < len(bases) else state.next_offset
        if next_base <= state.start_offset:
            continue
        path = names.log(directory, base)
        log_fd = files.open(path, write=False)
        try:
            found = _search_segment(files, directory, log_fd, base, state, timestamp_ms)
        except BadBatch as bad:
            raise CorruptLog(path, bad.position, bad.reason) from None
        finally:
            files.close(log_fd)
        if found is not None:
            return found
    return state.next_offset


def _search_segment(
    files: Files, directory: str, log_fd: int, base: int, state: HeadState, timestamp_ms: int
) -> int | None:
    """The first offset of this segment whose record is not older than `timestamp_ms`; None if all are."""
    first = _floor(files, directory, log_fd, base, state, timestamp_ms)
    position, due = locate(files, directory, log_fd, base, first, state)
    is_closed = base < state.segment_base
    limit = files.size(log_fd) if is_closed else state.position
    hit: list[tuple[int, BatchHeader]] = []

    def each(at: int, header: BatchHeader) -> None:
        if header.max_timestamp_ms >= timestamp_ms:
            hit.append((at, header))
            raise _FoundError

    while position < limit:
        try:
            ended = scan(files, log_fd, position, due, each, limit)
        except _FoundError:
            at, header = hit.pop()
            found = _first_record(files, log_fd, at, header, max(first, state.start_offset), timestamp_ms)
            if found is not None:
                return found
            position, due = at + header.size, header.next_offset
            continue
        if ended.reason:
            raise BadBatch(ended.position, ended.reason)
        break
    return None


class _FoundError(Exception):
    """Ends a scan: there is a batch that may hold what is looked for."""


def _first_record(
    files: Files, log_fd: int, position: int, header: BatchHeader, start: int, timestamp_ms: int
) -> int | None:
    raw = files.pread(log_fd, header.size, position)
    try:
        records, _, _ = decode_batches(raw, 0, header.base_offset, header.next_offset, 1 << 30)
    except BadBatch as bad:
        raise BadBatch(position, bad.reason) from None
    return next((one.offset for one in records if one.timestamp_ms >= timestamp_ms and one.offset >= start), None)


def _floor(files: Files, directory: str, log_fd: int, base: int, state: HeadState, timestamp_ms: int) -> int:
    """An offset of the segment below which all records are older than `timestamp_ms`, by its time index."""
    is_closed = base < state.segment_base
    time_index = read_or_empty(files, names.timeindex(directory, base))
    if is_closed and (not time_index or len(time_index) % TIME_ENTRY.size):
        time_index = bytes(rebuild(files, directory, base, log_fd).time_index)
    entry = _floor_entry(time_index, timestamp_ms)
    if entry is None:
        return base
    indexed_ms, last = entry[0], base + entry[1]
    if last < state.next_offset and _is_true(files, directory, log_fd, base, state, indexed_ms, last):
        return last + 1
    if not is_closed:
        return base
    entry = _floor_entry(bytes(rebuild(files, directory, base, log_fd).time_index), timestamp_ms)
    return base if entry is None else base + entry[1] + 1


def _floor_entry(time_index: bytes, timestamp_ms: int) -> tuple[int, int] | None:
    """The last entry that is older than `timestamp_ms`."""
    low, high = 0, len(time_index) // TIME_ENTRY.size
    found: tuple[int, int] | None = None
    while low < high:
        middle = (low + high) // 2
        indexed_ms, offset = TIME_ENTRY.unpack_from(time_index, middle * TIME_ENTRY.size)
        if indexed_ms < timestamp_ms:
            low, found = middle + 1, (indexed_ms, offset)
        else:
            high = middle
    return found


def _is_true(
    files: Files, directory: str, log_fd: int, base: int, state: HeadState, indexed_ms: int, last: int
) -> bool:
    """Whether a batch that ends at offset `last` has this largest timestamp, as an entry claims."""
    try:
        position, _ = locate(files, directory, log_fd, base, last, state)
        header = read_header(files.pread(log_fd, HEADER_BYTES, position).ljust(HEADER_BYTES, b"\0"), 0)
    except BadBatch:
        return False
    return header.next_offset == last + 1 and header.max_timestamp_ms == indexed_ms
