"""Passing over damage: where the next batch is that can be relied on, and what is lost up to there.

Nobody passes over damage unless told to. Where a batch is not sound, the next one is looked for first where its own
header says that it ends, which is right whenever only its records or its checksum were hit; then byte by byte. A value
may hold bytes that are a batch themselves (a log's own files, published), so one that is found byte by byte counts only
if the batch that follows goes on where it ends, or nothing follows. What is a little further on and sound may be lost
by that; what was never written is never served.
"""

from __future__ import annotations

from collections.abc import Callable

from taskq.broker.log.batch import HEADER, HEADER_BYTES, BatchHeader
from taskq.broker.log.files import Files
from taskq.broker.log.scan import Scanned, next_sound_batch, scan, sound_batch
from taskq.broker.port import Lost


def after_damage(
    files: Files, log_fd: int, position: int, offset: int, limit: int, end: int | None
) -> tuple[int, BatchHeader] | None:
    """The first batch from byte `position` up to `limit` that can be relied on and holds offsets from `offset` on.

    None if there is none. What is at `position` is not what is due there. `end` is the offset at which the log goes on
    behind `limit`, if that is known: a batch that ends there must end with that.
    """

    def is_due(header: BatchHeader) -> bool:
        return header.base_offset >= offset and (end is None or header.next_offset <= end)

    here = sound_batch(files, log_fd, position, limit)
    if here is not None and is_due(here) and _goes_on(files, log_fd, position, here, limit, end):
        return position, here
    promised = _promised(files, log_fd, position, limit)
    if promised is not None and is_due(promised[1]):
        return promised
    found = next_sound_batch(files, log_fd, position + 1, offset)
    while found is not None:
        at, header = found
        if at + header.size <= limit and is_due(header) and _goes_on(files, log_fd, at, header, limit, end):
            return found
        found = next_sound_batch(files, log_fd, at + 1, offset)
    return None


def _promised(files: Files, log_fd: int, position: int, limit: int) -> tuple[int, BatchHeader] | None:
    """What begins where the damaged batch at `position` says that it ends, if that fits its offsets."""
    raw = files.pread(log_fd, HEADER_BYTES, position)
    if len(raw) < HEADER_BYTES:
        return None
    header = BatchHeader._make(HEADER.unpack(raw))
    if header.size < HEADER_BYTES:
        return None
    there = sound_batch(files, log_fd, position + header.size, limit)
    if there is None or there.base_offset != header.next_offset:
        return None
    return position + header.size, there


def _goes_on(files: Files, log_fd: int, position: int, header: BatchHeader, limit: int, end: int | None) -> bool:
    if position + header.size == limit:
        return end in (None, header.next_offset)
    after = sound_batch(files, log_fd, position + header.size, limit)
    return after is not None and after.base_offset == header.next_offset


def walk(
    files: Files,
    log_fd: int,
    path: str,
    start: tuple[int, int],
    each: Callable[[int, BatchHeader], None],
    damaged: Callable[[Lost], None],
    limit: int,
    next_offset: int | None,
) -> Scanned:
    """Go through the segment in `path` up to byte `limit`, where the log goes on with `next_offset` (if known).

    Begins at `start`: a byte, and the offset that is due there. Calls `each(position, header)` for the batches that are
    sound, and `damaged` for what is between them and is not.
    """
    position, due = start
    size = min(limit, files.size(log_fd))
    while True:
        scanned = scan(files, log_fd, position, due, each, limit)
        position, due = scanned.position, scanned.next_offset
        reason = scanned.reason
        if not reason:
            if next_offset is not None and due < next_offset:
                damaged(
                    Lost(
                        path,
                        position,
                        limit - position,
                        due,
                        next_offset,
                        f"the file ends; the log goes on with offset {next_offset}",
                    )
                )
            return scanned
        found = after_damage(files, log_fd, position, due, size, next_offset)
        if found is None:
            damaged(Lost(path, position, limit - position, due, next_offset, reason))
            return scanned
        damaged(Lost(path, position, found[0] - position, due, found[1].base_offset, reason))
        position, due = found[0], found[1].base_offset
