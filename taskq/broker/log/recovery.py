"""Finding the true end of a partition's log when its head can't be trusted.

After a reboot only the last segment is scanned, since a segment is on stable storage before the next one is begun, and
of it only what is past the checkpoint (checkpoint.py). Its batches are checked one by one; the first that is not whole,
or not sound, ends the log, and what follows is cut. A torn tail is normal after a power cut and not worth more than a
line in the report. If sound batches come after it, what is cut is kept in a file of its own, set aside.

What was once synced is never thrown away, and offsets that were once synced are never given out again: damage in a
closed segment stays where it is and is reported by whoever reads it; where a part of the log is gone that the
checkpoint knows of, the log goes on at a new segment past it, so that the gap can be seen.

What is done after an fsync that failed is in repair.py.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from attrs import asdict, evolve, frozen

from taskq.broker.log import checkpoint, names, replacement
from taskq.broker.log.checkpoint import Checkpoint
from taskq.broker.log.files import UNGUARDED, Files, encode_json, read_or_empty, read_whole, remove, write_whole
from taskq.broker.log.head import HeadState, Times
from taskq.broker.log.index import IndexBuilder, is_index_sound, is_time_index_sound
from taskq.broker.log.scan import Scanned, next_sound_batch, scan
from taskq.broker.port import Lost

COPY_BYTES = 1024 * 1024
_REPORTS_KEPT = 10

_log = logging.getLogger("taskq.log")


@frozen
class RecoveryReport:
    """What recovery did with a partition. The last ones are kept in its directory, as recovery.json."""

    directory: str
    cause: str
    state: HeadState
    times: Times
    scanned_bytes: int = 0
    cut_bytes: int = 0
    reason: str = ""
    """Why the log ends where it ends; empty if the last batch was whole and nothing came after it."""
    set_aside: tuple[str, ...] = ()
    """Files with what was cut, if there were sound batches in it."""
    missing: tuple[int, int] | None = None
    """The offsets from the first up to the second had been on stable storage, and are gone."""
    lost: tuple[Lost, ...] = ()
    """What was there of records that had not been on stable storage when an fsync failed."""
    committed: tuple[str, ...] = ()
    """What groups had committed beyond the end, and was brought back to it."""

    @property
    def is_clean(self) -> bool:
        return not (self.reason or self.set_aside or self.missing or self.lost or self.committed)


def segment_bases(files: Files, directory: str) -> list[int]:
    """Base offsets of the segments in a partition's directory, ascending."""
    bases = (names.log_base_offset(name) for name in files.listdir(directory))
    return sorted(base for base in bases if base is not None)


def remove_segment(files: Files, directory: str, base: int, guard: AbstractContextManager[object] = UNGUARDED) -> None:
    """Remove a segment's files, the log last: without it, the others would be rubbish that nobody finds.

    `guard` is held while that loses its name: without one, hold the append lock of a partition that is there.
    """
    for path in (names.index(directory, base), names.timeindex(directory, base)):
        with suppress(FileNotFoundError):
            files.unlink(path)
    remove(files, names.log(directory, base), guard)


def recover(files: Files, directory: str) -> RecoveryReport:
    """Scan, cut what is torn, rebuild the indexes, and say where the log ends. Call under the append lock."""
    replacement.finish(files, directory)
    known = checkpoint.read(files, directory)
    bases = _usable_segments(files, directory, known)
    if not bases and known is None:  # a new partition: its first `sync` makes the file's name durable too
        files.close(files.open(names.log(directory, 0), create=True))
        return RecoveryReport(directory, "new", HeadState(0, 0, 0, -1, 0, 0), Times())
    report = _recover_last(files, directory, bases, known) if bases else None
    ended = report.state.next_offset if report else 0
    if known is not None and known.state.next_offset > ended:
        report = _begin_after_gap(files, directory, bases, known.state, report)
    assert report is not None
    files.sync_directory(directory)
    return report


def _usable_segments(files: Files, directory: str, known: Checkpoint | None) -> list[int]:
    """The segments, but for what retention was about to remove and what was begun and never written to."""
    bases = segment_bases(files, directory)
    start = known.state.start_offset if known else 0
    while len(bases) > 1 and bases[1] <= start:
        remove_segment(files, directory, bases.pop(0))
    while len(bases) > 1 and not files.size_of(names.log(directory, bases[-1])):
        if known is not None and known.state.segment_base == bases[-1]:
            break
        remove_segment(files, directory, bases.pop())
    return bases


def _recover_last(files: Files, directory: str, bases: Sequence[int], known: Checkpoint | None) -> RecoveryReport:
    base = bases[-1]
    log_fd = files.open(names.log(directory, base))
    try:
        builder, position, next_offset = _start(files, directory, log_fd, base, known)
        scanned = scan(files, log_fd, position, next_offset, builder.add)
        size = files.size(log_fd)
        aside = _cut(files, directory, log_fd, base, scanned, size)
        files.sync(log_fd)
    finally:
        files.close(log_fd)
    write_indexes(files, directory, base, builder)
    start = max(bases[0], known.state.start_offset if known else 0)
    return RecoveryReport(
        directory,
        "its head is missing or of another boot",
        end_state(base, scanned, builder, start),
        builder.times,
        scanned_bytes=size - position,
        cut_bytes=size - scanned.position,
        reason=scanned.reason,
        set_aside=aside,
    )


def end_state(base: int, scanned: Scanned, builder: IndexBuilder, start: int) -> HeadState:
    """The head of a log that begins at offset `start`, and whose last segment was scanned to its end."""
    last, size = builder.last_position, len(builder.index)
    return HeadState(base, scanned.position, scanned.next_offset, last, size, start)


def _start(
    files: Files, directory: str, log_fd: int, base: int, known: Checkpoint | None
) -> tuple[IndexBuilder, int, int]:
    """Where to begin to scan segment `base`: (what its indexes hold before that, position, offset due there)."""
    if known is not None and known.state.segment_base == base and known.state.position <= files.size(log_fd):
        state, times = known.state, known.times
        index = read_or_empty(files, names.index(directory, base))[: state.index_size]
        time_index = read_or_empty(files, names.timeindex(directory, base))[: times.index_size]
        is_whole = len(index) == state.index_size and len(time_index) == times.index_size
        if is_whole and is_index_sound(index, state.position) and is_time_index_sound(time_index):
            return IndexBuilder(base, index, time_index, times), state.position, state.next_offset
    return IndexBuilder(base), 0, base


def _cut(files: Files, directory: str, log_fd: int, base: int, scanned: Scanned, size: int) -> tuple[str, ...]:
    """Cut what is not sound; return the file it is kept in if there are sound batches in it."""
    aside: tuple[str, ...] = ()
    if size > scanned.position:
        if next_sound_batch(files, log_fd, scanned.position, scanned.next_offset):
            aside = (names.aside(directory, base, scanned.position),)
            copy(files, log_fd, scanned.position, size, aside[0])
        files.truncate(log_fd, scanned.position)
    return aside


def copy(files: Files, log_fd: int, position: int, end: int, path: str) -> None:
    """Set the bytes from `position` up to `end` aside, in the file at `path`."""
    fd = files.open(path, create=True)
    try:
        at = position
        while chunk := files.pread(log_fd, min(COPY_BYTES, end - at), at):
            write_all(files, fd, chunk, at - position)
            at += len(chunk)
        files.sync(fd)
    finally:
        files.close(fd)


def write_all(files: Files, fd: int, data: bytes, position: int) -> None:
    """Write `data`, in as many calls as it takes. Raises OSError."""
    written = 0
    while written < len(data):
        count = files.pwrite(fd, data[written:], position + written)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += count


def write_indexes(files: Files, directory: str, base: int, builder: IndexBuilder) -> None:
    """Write the indexes of the last segment anew."""
    for path, data in (
        (names.index(directory, base), builder.index),
        (names.timeindex(directory, base), builder.time_index),
    ):
        fd = files.open(path, create=True)
        try:
            files.truncate(fd, 0)
            if data:
                write_all(files, fd, bytes(data), 0)
        finally:
            files.close(fd)


def _begin_after_gap(
    files: Files, directory: str, bases: Sequence[int], known: HeadState, report: RecoveryReport | None
) -> RecoveryReport:
    """Go on past what is gone, in a new segment: its offsets have been given out, and groups may have finished them."""
    base = known.next_offset
    files.close(files.open(names.log(directory, base), create=True))
    start = max(bases[0], known.start_offset) if bases else base
    state = HeadState(base, 0, base, -1, 0, start)
    first = report.state.next_offset if report else known.start_offset
    empty = RecoveryReport(directory, "its head is missing or of another boot", state, Times())
    return evolve(report or empty, state=state, times=Times(), missing=(first, base))


def keep_report(files: Files, name: str, report: RecoveryReport) -> None:
    """Log what recovery found, and keep it in the partition's directory."""
    if report.cause == "new":
        return
    say = _log.info if report.is_clean else _log.warning
    state = report.state
    parts = [f"recovered, since {report.cause}: offsets {state.start_offset} to {state.next_offset}"]
    if report.cut_bytes:
        parts.append(f"cut {report.cut_bytes} bytes ({report.reason})")
    parts += [f"{one}, which had not been synced" for one in report.lost]
    if report.set_aside:
        parts.append(f"sound batches among them are in {', '.join(report.set_aside)}")
    if report.missing:
        parts.append(f"offsets {report.missing[0]} to {report.missing[1] - 1} are gone, though they had been synced")
    parts += report.committed
    say("%s: %s", name, "; ".join(parts))
    path = names.recovery_report(report.directory)
    with suppress(OSError):
        write_whole(files, path, encode_json([*_kept(files, path), _as_json(report)][-_REPORTS_KEPT:]))


def _kept(files: Files, path: str) -> list[Any]:
    try:
        kept = json.loads(read_whole(files, path))
    except (FileNotFoundError, ValueError):
        return []
    return kept if isinstance(kept, list) else []


def _as_json(report: RecoveryReport) -> dict[str, Any]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(report)}
