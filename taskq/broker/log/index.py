"""The sparse offset index of a segment: for about every 4 KiB of log, where a batch begins.

The format is Kafka's: entries of two big-endian int32, the batch's last offset less the segment's base offset, and the
batch's position in the `.log`. An index only says where to start looking. It is never trusted over the log: whoever
looks something up reads the batch headers from there on, and an index that is missing, short or wrong costs time only.
"""

from __future__ import annotations

from struct import Struct

from taskq.broker.log.batch import HEADER_BYTES, BadBatch, read_header
from taskq.broker.log.files import Files

ENTRY = Struct(">ii")
INDEX_INTERVAL_BYTES = 4096  # Kafka's index.interval.bytes
_SCAN_BYTES = 64 * 1024


def floor_position(index: bytes, relative_offset: int) -> int:
    """Position of the last indexed batch that ends before `relative_offset`; 0 if there is none."""
    low, high = 0, len(index) // ENTRY.size
    position = 0
    while low < high:
        middle = (low + high) // 2
        last, at = ENTRY.unpack_from(index, middle * ENTRY.size)
        if last < relative_offset:
            low, position = middle + 1, at
        else:
            high = middle
    return max(0, position)


def find(files: Files, log_fd: int, index: bytes, base_offset: int, offset: int, limit: int) -> int:
    """Position of the batch of the segment that holds `offset`.

    `limit` is the visible end of the log (an offset): nothing at or past it is looked at. Returns the position after
    the last batch if `offset` is past them. Raises BadBatch, its position counted from the segment's start, on damage.
    """
    position = floor_position(index, offset - base_offset)
    if position and not _begins_below(files, log_fd, position, offset):
        position = 0
    while True:
        buffer = files.pread(log_fd, _SCAN_BYTES, position)
        at = 0
        while len(buffer) - at >= HEADER_BYTES:
            try:
                header = read_header(buffer, at)
            except BadBatch as bad:
                raise BadBatch(position + bad.position, bad.reason) from None
            if header.next_offset > offset or header.base_offset >= limit:
                return position + at
            at += header.size
        if len(buffer) < HEADER_BYTES or at == 0:
            return position + at
        position += at


def _begins_below(files: Files, log_fd: int, position: int, offset: int) -> bool:
    """Whether a batch of an offset below `offset` begins at `position`, as an index claims."""
    raw = files.pread(log_fd, HEADER_BYTES, position)
    if len(raw) < HEADER_BYTES:
        return False
    try:
        return read_header(raw, 0).base_offset < offset
    except BadBatch:
        return False
