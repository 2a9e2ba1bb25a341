"""Repairing a partition whose last fsync failed.

The system may have dropped what it could not write, and says so but once: a second fsync may report success for data
that is gone. What was appended since the last good sync is therefore read, checked, written again and synced before
anybody appends.

It is written where it was, so a repair that is cut short, by a kill or another error, has made nothing worse, and the
next one begins anew. What can no longer be read as it was written is replaced by batches without records, of just as
many bytes and offsets: the offsets stay used, and all that is sound behind them stays where it is. If there are sound
batches in what is replaced (it can't be known that they are the log's own, see damage.py), it is set aside before. What
had been synced is not touched, be it damaged or not.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import pairwise

from attrs import evolve

from taskq.broker.log import names
from taskq.broker.log.batch import BASE_OFFSET, HEADER_BYTES, BadBatch, check_due, encode_filler, read_header
from taskq.broker.log.damage import walk
from taskq.broker.log.files import Files
from taskq.broker.log.head import HeadState
from taskq.broker.log.index import IndexBuilder
from taskq.broker.log.recovery import COPY_BYTES, RecoveryReport, copy, end_state, write_all, write_indexes
from taskq.broker.log.scan import next_sound_batch, scan
from taskq.broker.port import Lost

_FILLER_BYTES_MAX = 1024 * 1024


def repair(files: Files, directory: str, state: HeadState, synced: int) -> RecoveryReport:
    """See the module docstring. Call under the append lock. Raises OSError if it fails again."""
    base = state.segment_base
    log_fd = files.open(names.log(directory, base))
    try:
        due = max(base, synced)
        position = _position_of(files, directory, log_fd, state, due)
        lost = _find_lost(files, directory, log_fd, state, position, due)
        aside = _set_aside(files, directory, log_fd, base, lost)
        for one in lost:
            _fill(files, log_fd, one)
        _write_again(files, log_fd, position, state.position)
        builder = IndexBuilder(base)
        scan(files, log_fd, 0, base, builder.add, position)
        scanned = scan(files, log_fd, position, due, builder.add, state.position)
        if (scanned.position, scanned.next_offset) != (state.position, state.next_offset):
            why = f"it can't be repaired: byte {scanned.position}, {scanned.reason}"
            raise OSError(errno.EIO, why, names.log(directory, base))
        files.sync(log_fd)
    finally:
        files.close(log_fd)
    write_indexes(files, directory, base, builder)
    files.sync_directory(directory)
    return RecoveryReport(
        directory,
        "an fsync failed",
        end_state(base, scanned, builder, state.start_offset),
        builder.times,
        scanned_bytes=state.position - position,
        set_aside=aside,
        lost=tuple(lost),
    )


def _position_of(files: Files, directory: str, log_fd: int, state: HeadState, offset: int) -> int:
    """Where in the last segment `offset` is due, going by the headers before it. Raises OSError if they are damaged."""
    position, due = 0, state.segment_base
    try:
        while due < offset:
            buffer, at = files.pread(log_fd, COPY_BYTES, position), 0
            while due < offset and len(buffer) - at >= HEADER_BYTES:
                header = read_header(buffer, at)
                check_due(header, at, due)
                at, due = at + header.size, header.next_offset
            if not at:
                raise BadBatch(at, "the log ends")
            position += at
        if due != offset or position > state.position:
            raise BadBatch(0, f"a batch goes on over offset {offset}")
    except BadBatch as bad:
        byte = position + bad.position
        why = f"it is damaged before offset {offset}, up to which it had been synced: byte {byte}, {bad.reason}"
        raise OSError(errno.EIO, why, names.log(directory, state.segment_base)) from bad
    return position


def _find_lost(files: Files, directory: str, log_fd: int, state: HeadState, position: int, due: int) -> list[Lost]:
    """What is not as it was written, from `position` on, where offset `due` is."""
    path = names.log(directory, state.segment_base)
    lost: list[Lost] = []
    walk(files, log_fd, path, (position, due), lambda at, header: None, lost.append, state.position, state.next_offset)
    for number, one in enumerate(lost):
        if one.size_bytes < HEADER_BYTES or one.offset == one.next_offset:
            # Offsets without bytes, or the other way round: what seems sound behind it is not what was there.
            rest = evolve(one, size_bytes=state.position - one.position, next_offset=state.next_offset)
            return [*lost[:number], rest]
    return lost


def _set_aside(files: Files, directory: str, log_fd: int, base: int, lost: Sequence[Lost]) -> tuple[str, ...]:
    """Copy what may be of use. Returns the files."""
    aside: list[str] = []
    for one in lost:
        end = one.position + one.size_bytes
        found = next_sound_batch(files, log_fd, one.position, one.offset)
        if found is not None and found[0] < end:
            aside.append(names.aside(directory, base, one.position))
            copy(files, log_fd, one.position, end, aside[-1])
    return tuple(aside)


def _fill(files: Files, log_fd: int, lost: Lost) -> None:
    """Put batches without records in its place, of as many bytes and offsets: one, unless that would be a large one."""
    assert lost.next_offset is not None
    count = min(lost.next_offset - lost.offset, -(-lost.size_bytes // _FILLER_BYTES_MAX))
    positions = [lost.position + lost.size_bytes * number // count for number in range(count)]
    offsets = [lost.offset + number for number in range(count)]
    for (position, end), (offset, after) in zip(
        pairwise([*positions, lost.position + lost.size_bytes]), pairwise([*offsets, lost.next_offset])
    ):
        filler = BASE_OFFSET.pack(offset) + encode_filler(after - offset, end - position)
        write_all(files, log_fd, filler, position)


def _write_again(files: Files, log_fd: int, position: int, end: int) -> None:
    while position < end:
        chunk = files.pread(log_fd, min(COPY_BYTES, end - position), position)
        if not chunk:
            raise OSError(errno.EIO, f"the file ends at byte {position}, not at {end}")
        write_all(files, log_fd, chunk, position)
        position += len(chunk)
