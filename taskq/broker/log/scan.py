"""Walking a segment batch by batch, checking each: for recovery, verification and the rebuilding of indexes."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from taskq.broker.log.batch import (
    HEADER_BYTES,
    LENGTH_FIELD_END,
    MAGIC,
    BadBatch,
    BatchHeader,
    check_crc,
    check_due,
    read_header,
)
from taskq.broker.log.files import Files

_SCAN_BYTES = 1024 * 1024
_MAGIC_AT = 16
_PATTERN = bytes((0, 0, 0, 0, MAGIC))
"""A leader epoch of 0 and the magic byte: how bytes 12 to 16 of every batch look that taskq writes."""


@frozen
class Scanned:
    """Where a walk ended: everything before `position` is sound, and `next_offset` is due there."""

    position: int
    next_offset: int
    reason: str
    """Why it ended; empty if there was nothing more."""


def scan(
    files: Files,
    log_fd: int,
    position: int,
    next_offset: int,
    each: Callable[[int, BatchHeader], None],
    limit: int | None = None,
) -> Scanned:
    """Walk batches from `position` on, where `next_offset` is due, calling `each(position, header)` for the sound ones.

    Ends at the first batch that is not whole, not sound, or not of the offset that is due; or at byte `limit`.
    """
    want = _SCAN_BYTES
    while True:
        size = want if limit is None else min(want, limit - position)
        buffer = files.pread(log_fd, size, position)
        at = needs = 0
        while len(buffer) - at >= HEADER_BYTES:
            try:
                header = read_header(buffer, at)
                if at + header.size > len(buffer):
                    needs = header.size
                    break
                check_crc(buffer, at, header)
                check_due(header, at, next_offset)
            except BadBatch as bad:
                return Scanned(position + at, next_offset, bad.reason)
            each(position + at, header)
            at += header.size
            next_offset = header.next_offset
        position += at
        if len(buffer) < want:
            reason = "the last batch is not all there" if len(buffer) > at else ""
            return Scanned(position, next_offset, reason)
        want = max(_SCAN_BYTES, needs)


def next_sound_batch(files: Files, log_fd: int, position: int, offset: int) -> tuple[int, BatchHeader] | None:
    """The first sound batch that begins at byte `position` or later and holds offsets from `offset` on; None if none.

    For bytes of which it is not known where batches begin. Looks for what every batch of ours has in bytes 12 to 16.
    """
    end = files.size(log_fd)
    while position + HEADER_BYTES <= end:
        buffer = files.pread(log_fd, _SCAN_BYTES, position)
        found = buffer.find(_PATTERN, LENGTH_FIELD_END)
        while found >= 0:
            at = found - LENGTH_FIELD_END
            header = sound_batch(files, log_fd, position + at, end)
            if header is not None and header.base_offset >= offset:
                return position + at, header
            found = buffer.find(_PATTERN, found + 1)
        if len(buffer) <= _MAGIC_AT:
            return None
        position += len(buffer) - _MAGIC_AT
    return None


def sound_batch(files: Files, log_fd: int, position: int, limit: int) -> BatchHeader | None:
    """The header of the batch at `position`, if it is sound and ends at byte `limit` or before."""
    raw = files.pread(log_fd, HEADER_BYTES, position)
    if len(raw) < HEADER_BYTES:
        return None
    try:
        header = read_header(raw, 0)
        if position + header.size > limit:
            return None
        check_crc(files.pread(log_fd, header.size, position), 0, header)
    except BadBatch:
        return None
    return header
