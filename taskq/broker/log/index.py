"""The sparse indexes of a segment, by offset and by time: for about every 4 KiB of log, where a batch begins.

Both formats are Kafka's. Offset index: entries of two big-endian int32, a batch's last offset less the segment's base
offset, and the batch's position in the `.log`. Time index: entries of an int64 and an int32, the largest timestamp in
the segment so far (milliseconds) and the last offset, less the base, of the batch that has it; both ascending.

An index only says where to start looking. It is never trusted over the log: the batch that an entry names is checked
before anything is read from there on, and an index that is missing, short or wrong costs time only.
"""

from __future__ import annotations

from struct import Struct

from taskq.broker.log.batch import HEADER_BYTES, BadBatch, BatchHeader, check_due, read_header
from taskq.broker.log.files import Files
from taskq.broker.log.head import Times
from taskq.broker.log.scan import sound_batch

ENTRY = Struct(">ii")
TIME_ENTRY = Struct(">qi")
INDEX_INTERVAL_BYTES = 4096  # Kafka's index.interval.bytes
_SCAN_BYTES = 64 * 1024


class IndexBuilder:
    """Makes a segment's indexes from its batches, as appending does one by one."""

    def __init__(
        self, base_offset: int, index: bytes = b"", time_index: bytes = b"", times: Times | None = None
    ) -> None:
        """Begins with what there is already: `times` must fit `time_index`."""
        self._base = base_offset
        self.index = bytearray(index)
        self.time_index = bytearray(time_index)
        self._timestamp_max, self._timestamp_max_offset, _, self._indexed = times or Times()
        self.last_position = ENTRY.unpack_from(index, len(index) - ENTRY.size)[1] if index else -1

    @property
    def times(self) -> Times:
        return Times(self._timestamp_max, self._timestamp_max_offset, len(self.time_index), self._indexed)

    def add(self, position: int, header: BatchHeader) -> None:
        """Count the batch that begins at `position`. In the order of the log."""
        last = header.next_offset - 1
        if header.max_timestamp_ms > self._timestamp_max:
            self._timestamp_max, self._timestamp_max_offset = header.max_timestamp_ms, last
        if position - self.last_position >= INDEX_INTERVAL_BYTES or not position:
            self.index += ENTRY.pack(last - self._base, position)
            self.last_position = position
            self.add_time()

    def add_time(self) -> None:
        """Say how far the timestamps have come. At the end of a closed segment, too."""
        if self._timestamp_max > self._indexed:
            self.time_index += TIME_ENTRY.pack(self._timestamp_max, self._timestamp_max_offset - self._base)
            self._indexed = self._timestamp_max


def is_index_sound(index: bytes, position_max: int) -> bool:
    """Whether an offset index is whole entries, ascending, that name positions below `position_max`."""
    if len(index) % ENTRY.size:
        return False
    last_offset = last_position = -1
    for offset, position in ENTRY.iter_unpack(index):
        if offset <= last_offset or position <= last_position:
            return False
        last_offset, last_position = offset, position
    return last_position < position_max


def is_time_index_sound(index: bytes) -> bool:
    """Whether a time index is whole entries, ascending in both columns."""
    if len(index) % TIME_ENTRY.size:
        return False
    last_ms = last_offset = -1
    for timestamp_ms, offset in TIME_ENTRY.iter_unpack(index):
        if timestamp_ms <= last_ms or offset <= last_offset:
            return False
        last_ms, last_offset = timestamp_ms, offset
    return True


def begin(files: Files, log_fd: int, index: bytes, base_offset: int, offset: int) -> tuple[int, int] | None:
    """From where on to look for `offset` in a segment, going by its index: (position, the offset that is due there).

    That is the last indexed batch that ends before `offset`, or the segment's first. None if the index is wrong: no
    sound batch is there that ends with the offset of the entry.
    """
    low, high = 0, len(index) // ENTRY.size
    found = -1, 0
    while low < high:
        middle = (low + high) // 2
        entry = ENTRY.unpack_from(index, middle * ENTRY.size)
        if entry[0] < offset - base_offset:
            low, found = middle + 1, entry
        else:
            high = middle
    last, position = found
    if position <= 0:
        return 0, base_offset
    header = sound_batch(files, log_fd, position, files.size(log_fd))
    # By the entry: no checksum covers the base offset.
    if header is None or header.next_offset != base_offset + last + 1:
        return None
    return position, header.base_offset


def find(files: Files, log_fd: int, index: bytes, base_offset: int, offset: int, limit: int) -> int:
    """Position of the batch of the segment that holds `offset`.

    `limit` is the visible end of the log (an offset): nothing at or past it is looked at. Returns the position after
    the last batch if `offset` is past them. Raises BadBatch, its position counted from the segment's start, on damage.
    """
    start = begin(files, log_fd, index, base_offset, offset) or (0, base_offset)
    return find_from(files, log_fd, start, offset, limit)[0]


def find_from(files: Files, log_fd: int, start: tuple[int, int], offset: int, limit: int) -> tuple[int, int]:
    """What `find` does, from `start` on, which is (the position of a batch, the offset due there), as is the result.

    Goes by the headers, unchecked but for this: each batch begins where the one before ends.
    """
    position, due = start
    while due < limit:
        buffer = files.pread(log_fd, _SCAN_BYTES, position)
        at = 0
        while due < limit and len(buffer) - at >= HEADER_BYTES:
            try:
                header = read_header(buffer, at)
                check_due(header, at, due)
            except BadBatch as bad:
                raise BadBatch(position + bad.position, bad.reason) from None
            if header.next_offset > offset:
                return position + at, due
            at, due = at + header.size, header.next_offset
        position += at
        if not at:
            break
    return position, due
