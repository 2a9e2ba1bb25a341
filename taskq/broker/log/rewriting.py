"""Reading closed segments batch by batch, and writing one that has fewer records and yet covers all their offsets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import frozen

from taskq.broker.log import names
from taskq.broker.log.batch import (
    BASE_OFFSET,
    HEADER_BYTES,
    BadBatch,
    BatchHeader,
    check_crc,
    check_due,
    encode_batch,
    encode_filler,
    read_header,
)
from taskq.broker.log.files import Files, check_written
from taskq.broker.log.index import IndexBuilder
from taskq.broker.log.records import decode_record
from taskq.broker.port import Record

COMPRESSED = 0x07
CONTROL = 0x20
_READ_BYTES = 1024 * 1024
_WRITE_BYTES = 1024 * 1024

_REST_EVERY_BYTES = 1024 * 1024
_REST_S_MAX = 0.01

Keep = Callable[[Record], bool]
Rest = Callable[[float], bool]
"""Let others run for so many seconds; whether to stop. Of a threading.Event, its `wait`."""


class Stopped(Exception):
    """What was at work is to end now."""


class Pace:
    """Has whoever works through much data rest now and then, no longer than the work took, and tells it to stop.

    Giving up the interpreter for a moment would not do: the others, who wait for the disk meanwhile, would not get it.
    """

    def __init__(self, rest: Rest, clock: Callable[[], float] = time.monotonic) -> None:
        self._rest = rest
        self._clock = clock
        self._bytes = 0
        self._began = clock()

    def worked(self, size: int) -> None:
        """So many bytes more are done. Raises Stopped."""
        self._bytes += size
        is_due = self._bytes >= _REST_EVERY_BYTES
        if self._rest(min(self._clock() - self._began, _REST_S_MAX) if is_due else 0.0):
            raise Stopped
        if is_due:
            self._bytes, self._began = 0, self._clock()


@frozen
class Segment:
    """A closed segment: its offsets, from the first up to the one before `end`, and the bytes of its log."""

    base: int
    end: int
    size: int


class SegmentWriter:
    """Writes batches to a file, in the order of their offsets. The last one is held back: it may have to be widened."""

    def __init__(self, files: Files, path: str, base: int) -> None:
        self.index = IndexBuilder(base)
        self._files = files
        self._path = path
        self._due = base
        self._held: tuple[BatchHeader, bytes] | None = None
        self._pending = bytearray()
        self._written = 0
        self._fd = files.open(path, create=True)
        try:
            files.truncate(self._fd, 0)
        except OSError:
            files.close(self._fd)
            raise

    @property
    def size(self) -> int:
        return self._written + len(self._pending)

    def add(self, header: BatchHeader, raw: bytes) -> None:
        """Write a batch. What is missing before it is covered."""
        self._cover(header.base_offset)
        self._hold(header, raw)

    def finish(self, end: int) -> None:
        """Cover what is missing up to offset `end`, and sync it."""
        self._cover(end)
        self._release()
        self._flush()
        self.index.add_time()
        self._files.sync(self._fd)

    def _cover(self, offset: int) -> None:
        missing = offset - self._due
        if not missing:
            return
        if self._held is not None and self._may_widen(self._held[0]):
            header, raw = self._held
            wider = header._replace(last_offset_delta=header.last_offset_delta + missing)
            raw = encode_batch(wider, raw[HEADER_BYTES:])
            self._held = None
        else:
            raw = BASE_OFFSET.pack(self._due) + encode_filler(missing)
        self._hold(read_header(raw, 0), raw)

    @staticmethod
    def _may_widen(header: BatchHeader) -> bool:
        """A producer's batch says by its offsets how many records were sent."""
        return header.producer_id < 0 and not header.attributes & CONTROL

    def _hold(self, header: BatchHeader, raw: bytes) -> None:
        self._release()
        self._held = header, raw
        self._due = header.next_offset

    def _release(self) -> None:
        if self._held is not None:
            header, raw = self._held
            self.index.add(self.size, header)
            self._pending += raw
            self._held = None
            if len(self._pending) >= _WRITE_BYTES:
                self._flush()

    def _flush(self) -> None:
        data = bytes(self._pending)
        check_written(self._files.pwrite(self._fd, data, self._written), data, self._path)
        self._written += len(data)
        self._pending.clear()

    def close(self) -> None:
        self._files.close(self._fd)

    def discard(self) -> None:
        """Remove what has been written."""
        with suppress(FileNotFoundError):
            self._files.unlink(self._path)


# -- reading


def batches_of(files: Files, directory: str, segment: Segment, pace: Pace) -> Iterator[tuple[BatchHeader, bytes]]:
    """All batches of a segment. Raises BadBatch, its position counted from the segment's start, at anything odd.

    Raises Stopped.
    """
    fd = files.open(names.log(directory, segment.base), write=False)
    try:
        position, due, want = 0, segment.base, _READ_BYTES
        while position < segment.size:
            buffer = files.pread(fd, min(want, segment.size - position), position)
            at = 0
            while len(buffer) - at >= HEADER_BYTES:
                header = _checked(buffer, at, position, due)
                if header is None:
                    break
                yield header, buffer[at : at + header.size]
                at, due = at + header.size, header.next_offset
            if not at and len(buffer) < want:
                raise BadBatch(position, f"{len(buffer)} bytes that are no whole batch")
            position += at
            pace.worked(at)
            want = _READ_BYTES if at else want * 2
        if due != segment.end:
            raise BadBatch(position, f"the segment ends at offset {due}, the next one begins at {segment.end}")
    finally:
        files.close(fd)


def _checked(buffer: bytes, at: int, position: int, due: int) -> BatchHeader | None:
    """The header of the batch at `at`; None if not all of the batch is in the buffer."""
    try:
        header = read_header(buffer, at)
        if at + header.size > len(buffer):
            return None
        check_crc(buffer, at, header)
        check_due(header, at, due)
    except BadBatch as bad:
        raise BadBatch(position + at, bad.reason) from None
    if header.attributes & COMPRESSED:
        raise BadBatch(position + at, "it is compressed, which can't be compacted here")
    return header


def records_of(header: BatchHeader, raw: bytes) -> Iterator[tuple[Record, bytes]]:
    """The records of a batch, each with its bytes. None of a control batch, which holds markers."""
    position = HEADER_BYTES
    if header.attributes & CONTROL:
        return
    try:
        for _ in range(header.record_count):
            record, end = decode_record(raw, position, header.base_offset, header.base_timestamp_ms)
            yield record, raw[position:end]
            position = end
    except (IndexError, UnicodeDecodeError) as error:
        raise BadBatch(position, f"records of offset {header.base_offset} on can't be decoded: {error}") from None


def reduced(header: BatchHeader, raw: bytes, keeps: Keep) -> tuple[BatchHeader, bytes] | None:
    """What stays of a batch: itself, a smaller one, or None. Its offsets and numbers stay as they were."""
    if not header.record_count or header.attributes & CONTROL:
        return header, raw
    staying = [(record, part) for record, part in records_of(header, raw) if keeps(record)]
    if len(staying) == header.record_count:
        return header, raw
    if not staying:
        return None
    timestamp_max = max(record.timestamp_ms for record, _ in staying)
    smaller = header._replace(record_count=len(staying), max_timestamp_ms=timestamp_max)
    raw = encode_batch(smaller, b"".join(part for _, part in staying))
    return read_header(raw, 0), raw
