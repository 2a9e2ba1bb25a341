"""Putting a new segment in the place of one, or of several neighbours. Whenever it is cut short, the log can be read.

    1. The new log and its indexes are written under temporary names, and synced.
    2. If it stands for several, the file `merging` says so, durably.
    3. The old indexes are removed; durably, so that no index is ever found beside a log it was not made for.
    4. The new log takes the name of the first segment: this is the moment. From here on both the new segment and the
       others hold the offsets of these. A reader takes the segment of the highest base that is not above its offset, so
       it reads each offset once, here or there, and finds the same.
    5. The new indexes get their names.
    6. The others are removed, then `merging`.

What was begun and not finished is found by `finish`: at the next compaction, and at recovery, before anything else is
made of the segments. Up to step 4 it leaves things as they are, from there on it removes the others.

A reader that has an old file open reads on in it. Who has read to its end and does not find the next one looks anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from taskq.broker.log import names
from taskq.broker.log.files import TEMPORARY, Files, read_whole, remove, write_whole
from taskq.broker.log.index import IndexBuilder
from taskq.broker.log.scan import scan
from taskq.broker.log.sealed import decode_sealed, encode_sealed

_SUFFIX = ".new" + TEMPORARY

Guard = Callable[[], AbstractContextManager[object]]


def paths(directory: str, base: int) -> tuple[str, str, str]:
    """The files of a segment: its log first."""
    return names.log(directory, base), names.index(directory, base), names.timeindex(directory, base)


def temporary(path: str) -> str:
    """Where the file that is to be `path` is written."""
    return path + _SUFFIX


def announce(
    files: Files, directory: str, bases: Sequence[int], end: int, guard: AbstractContextManager[object]
) -> None:
    """Say that one segment is going to stand for those of `bases`, which end before offset `end`.

    See `files.write_whole` for `guard`.
    """
    if len(bases) > 1:
        document = {"base": bases[0], "end": end, "others": list(bases[1:])}
        write_whole(files, names.merging(directory), encode_sealed(document), guard)
        files.sync_directory(directory)


def remove_indexes(files: Files, directory: str, base: int) -> None:
    """Step 3."""
    for path in paths(directory, base)[1:]:
        with suppress(FileNotFoundError):
            files.unlink(path)
    files.sync_directory(directory)


def finish(files: Files, directory: str, guard: Guard = nullcontext) -> None:
    """Finish, or forget, a replacement that was begun. Call it alone with the segments: see compaction.py.

    See `remove_others`. Raises OSError.
    """
    try:
        document = decode_sealed(read_whole(files, names.merging(directory)))
    except FileNotFoundError:
        return
    if document is not None and _ends_at(files, directory, document["base"], document["end"]):
        remove_others(files, directory, document["others"], guard)
    else:
        files.unlink(names.merging(directory))


def _ends_at(files: Files, directory: str, base: int, end: int) -> bool:
    """Whether segment `base` is sound, and holds all offsets up to `end`."""
    try:
        fd = files.open(names.log(directory, base), write=False)
    except FileNotFoundError:
        return False
    try:
        scanned = scan(files, fd, 0, base, lambda position, header: None)
        return scanned.next_offset == end and not scanned.reason
    finally:
        files.close(fd)


def remove_others(files: Files, directory: str, others: Sequence[int], guard: Guard) -> None:
    """Step 6. The new log's name must be durable.

    `guard()` is held while one of them loses its name: see `files.remove`.
    """
    for base in others:
        log, *indexes = paths(directory, base)
        for path in indexes:  # the log last: without it nobody would find the others
            with suppress(FileNotFoundError):
                files.unlink(path)
        remove(files, log, guard())
    files.sync_directory(directory)
    with suppress(FileNotFoundError):
        files.unlink(names.merging(directory))


def remove_temporary(files: Files, directory: str) -> None:
    """Remove what was being written when somebody was killed."""
    for name in files.listdir(directory):
        if _SUFFIX in name:
            with suppress(FileNotFoundError):
                files.unlink(f"{directory}/{name}")


def write_indexes(files: Files, directory: str, base: int, builder: IndexBuilder) -> None:
    """Write the indexes of the new segment under their temporary names."""
    for path, data in zip(paths(directory, base)[1:], (builder.index, builder.time_index)):
        write_whole(files, temporary(path), bytes(data))
