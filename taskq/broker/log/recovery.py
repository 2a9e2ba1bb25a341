"""Finding the true end of a partition's log when its head can't be trusted: a new partition, or one after a reboot.

Only the last segment is scanned, since a segment is synced before the next one is begun. Its batches are checked one by
one; the first that is not whole, or not sound, ends the log, and what follows is cut. A torn tail is normal after a
power cut and not worth more than a line in the report.
"""

from __future__ import annotations

from contextlib import suppress

from attrs import frozen

from taskq.broker.log import names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, check_crc, read_header
from taskq.broker.log.files import Files
from taskq.broker.log.head import HeadState
from taskq.broker.log.index import ENTRY, INDEX_INTERVAL_BYTES

_SCAN_BYTES = 1024 * 1024


@frozen
class RecoveryReport:
    """What recovery did with a partition."""

    directory: str
    state: HeadState
    bytes_cut: int
    reason: str
    """Why the log ends where it ends; empty if the last batch was whole."""


def segment_bases(files: Files, directory: str) -> list[int]:
    """Base offsets of the segments in a partition's directory, ascending."""
    bases = (names.log_base_offset(name) for name in files.listdir(directory))
    return sorted(base for base in bases if base is not None)


def remove_segment(files: Files, directory: str, base: int) -> None:
    """Remove a segment's files."""
    for path in (names.index(directory, base), names.log(directory, base)):
        with suppress(FileNotFoundError):
            files.unlink(path)


def _size(files: Files, path: str) -> int:
    fd = files.open(path, write=False)
    try:
        return files.size(fd)
    finally:
        files.close(fd)


def recover(files: Files, directory: str) -> RecoveryReport:
    """Scan, cut what is torn, rebuild the index, and say where the log ends. Call under the append lock."""
    bases = segment_bases(files, directory)
    if not bases:  # a new partition: its first `sync` makes the file's name durable too
        files.close(files.open(names.log(directory, 0), create=True))
        return RecoveryReport(directory, HeadState(0, 0, 0, -1, 0, 0), 0, "")
    while len(bases) > 1 and _size(files, names.log(directory, bases[-1])) == 0:
        remove_segment(files, directory, bases.pop())  # begun, and nothing of it was kept
    base = bases[-1]
    log_fd = files.open(names.log(directory, base))
    index_fd = files.open(names.index(directory, base), create=True)
    try:
        position, next_offset, index, reason = _scan(files, log_fd, base)
        cut = files.size(log_fd) - position
        if cut:
            files.truncate(log_fd, position)
        files.truncate(index_fd, 0)
        files.pwrite(index_fd, bytes(index), 0)
        files.sync(log_fd)
    finally:
        files.close(log_fd)
        files.close(index_fd)
    last_indexed = ENTRY.unpack_from(index, len(index) - ENTRY.size)[1] if index else -1
    state = HeadState(base, position, next_offset, last_indexed, len(index), bases[0])
    return RecoveryReport(directory, state, cut, reason if cut else "")


def _scan(files: Files, log_fd: int, base_offset: int) -> tuple[int, int, bytearray, str]:
    """Walk a segment's batches: (end of the sound part, its next offset, an index of it, why it ends there)."""
    position, next_offset, index, last_indexed = 0, base_offset, bytearray(), -INDEX_INTERVAL_BYTES
    want = _SCAN_BYTES
    while True:
        buffer = files.pread(log_fd, want, position)
        at = 0
        while len(buffer) - at >= HEADER_BYTES:
            try:
                header = read_header(buffer, at)
                if at + header.size > len(buffer):
                    break
                check_crc(buffer, at, header)
            except BadBatch as bad:
                return position + at, next_offset, index, bad.reason
            if header.base_offset != next_offset:
                reason = f"a batch of offset {header.base_offset} where {next_offset} is due"
                return position + at, next_offset, index, reason
            if position + at - last_indexed >= INDEX_INTERVAL_BYTES:
                last_indexed = position + at
                index += ENTRY.pack(header.next_offset - 1 - base_offset, last_indexed)
            at += header.size
            next_offset = header.next_offset
        position += at
        if len(buffer) < want:
            return position, next_offset, index, "the last batch is not all there"
        want = _SCAN_BYTES if at else want * 2
