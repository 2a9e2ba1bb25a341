"""Checking one partition: every batch of every segment, and whatever lies beside them. Reads only, takes no lock.

Others may append, roll, retain and compact meanwhile. What is seen is compared with the head as it was before the files
were listed, so what comes later is not missed, but a segment may vanish or be replaced between two looks. So damage
counts only if it is found twice in the same place, by two looks that share nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen

from taskq.broker.log import names
from taskq.broker.log.batch import BatchHeader
from taskq.broker.log.damage import walk
from taskq.broker.log.files import TEMPORARY, Files, read_whole
from taskq.broker.log.index import IndexBuilder
from taskq.broker.log.view import HeadKind, View, take
from taskq.broker.port import Lost

DAMAGE, WARNING, INFORMATION = "damage", "warning", "information"

_LOOKS_MAX = 3
_PROGRESS_BYTES = 4 * 1024 * 1024


@frozen
class Finding:
    """Something that is not as it should be, or that somebody should know of."""

    severity: str
    """"damage": something is lost or can't be read; "warning": it heals itself, at a price; or "information"."""
    file: str
    what: str
    position: int | None = None
    """Byte in the file."""
    size_bytes: int | None = None
    """How many bytes are affected from there on."""
    offset: int | None = None
    """The first offset that is lost, up to `next_offset`, which can be read again, if that is known."""
    next_offset: int | None = None

    @property
    def records_max(self) -> int | None:
        """How many records are lost at most: there may have been fewer in these offsets."""
        if self.offset is None or self.next_offset is None:
            return None
        return self.next_offset - self.offset

    @classmethod
    def of(cls, lost: Lost) -> Finding:
        return cls(DAMAGE, lost.file, lost.reason, lost.position, lost.size_bytes, lost.offset, lost.next_offset)


@define
class Counts:
    """What was looked through."""

    topics: int = 0
    partitions: int = 0
    segments: int = 0
    batches: int = 0
    records: int = 0
    size_bytes: int = 0


@define
class Look:
    """One look at one partition."""

    files: Files
    directory: str
    progress: Callable[[int], object] = lambda size: None
    counts: Counts = field(factory=Counts)
    findings: list[Finding] = field(factory=list)
    end: int | None = None
    """The offset after the last sound batch."""

    def say(self, severity: str, path: str, what: str) -> None:
        self.findings.append(Finding(severity, path, what))


def inspect(files: Files, directory: str, progress: Callable[[int], object] = lambda size: None) -> Look:
    """Look through a partition's directory. Raises FileNotFoundError if it is gone."""
    look = _look(files, directory, progress)
    for _ in range(_LOOKS_MAX - 1):
        suspected = {(one.file, one.position) for one in look.findings if one.severity == DAMAGE}
        if not suspected:
            break
        again = _look(files, directory, lambda size: None)
        again.findings = [
            one for one in again.findings if one.severity != DAMAGE or (one.file, one.position) in suspected
        ]
        look = again
    return look


def inspect_segment(files: Files, path: str, progress: Callable[[int], object] = lambda size: None) -> Look:
    """Look through one segment, which may be the last of a log that others append to."""
    directory, name = path.rpartition("/")[::2]
    base = names.log_base_offset(name)
    assert base is not None, "a segment's file"
    look = Look(files, directory or ".", progress)
    for _ in range(_LOOKS_MAX):
        look = Look(files, directory or ".", progress)
        view = take(files, directory or ".")
        if base not in view.bases:  # a stray file: for itself
            view = View(look.directory, HeadKind.ABSENT, None, None, (base,), ())
        _segment(look, view, base)
        if not any(one.severity == DAMAGE for one in look.findings):
            break
    return look


def _look(files: Files, directory: str, progress: Callable[[int], object]) -> Look:
    look = Look(files, directory, progress)
    look.counts.partitions = 1
    view = take(files, directory)
    _head(look, view)
    _segments(look, view)
    _beside(look, view)
    return look


def _head(look: Look, view: View) -> None:
    if view.head is HeadKind.UNSOUND:
        what = "the head is not sound: the end of the log is found anew, by a scan, when it is opened"
        look.say(WARNING, names.head(look.directory), what)
    if view.checkpoint is None:
        with suppress(FileNotFoundError):
            look.files.size_of(names.checkpoint(look.directory))
            what = "the checkpoint is not sound: recovery would have to scan the whole last segment"
            look.say(WARNING, names.checkpoint(look.directory), what)


def _segments(look: Look, view: View) -> None:
    first = view.bases[0] if view.bases else None
    end = view.state.next_offset if view.state else _promised_end(view)
    if (first is None and end > view.start) or (first is not None and first > view.start):
        last = end if first is None else first
        path = names.log(look.directory, view.start)
        what = "no file holds these offsets: the segment is missing"
        look.findings.append(Finding(DAMAGE, path, what, None, None, view.start, last))
    for base in view.bases:
        if look.end is not None and base < look.end and view.goes_on_at(look.end):
            _merged(look, view, base)
            continue
        try:
            _segment(look, view, base)
        except FileNotFoundError:
            what = "the segment is missing"
            after = view.next_base(base)
            look.findings.append(Finding(DAMAGE, names.log(look.directory, base), what, None, None, base, after))
    ended = first if look.end is None and first is not None else look.end or 0
    if view.state is None and view.bases and ended < end:
        path = names.log(look.directory, view.bases[-1])
        what = "the log ends here, though more had been on stable storage (the checkpoint says so)"
        look.findings.append(Finding(DAMAGE, path, what, None, None, ended, end))


def _merged(look: Look, view: View, base: int) -> None:
    """A segment whose offsets the one before it has too: compaction has merged them, and will remove this one."""
    path, lost = names.log(look.directory, base), list[Lost]()
    try:
        log_fd = look.files.open(path, write=False)
    except FileNotFoundError:
        return
    try:
        size = look.files.size(log_fd)
        ended = walk(look.files, log_fd, path, (0, base), lambda at, header: None, lost.append, size, None)
    finally:
        look.files.close(log_fd)
    look.findings += [Finding.of(one) for one in lost]
    if not lost and view.goes_on_at(ended.next_offset):
        what = "merged into the segment before it by compaction, which is about to remove it"
        look.say(INFORMATION, path, what)
    elif not lost:
        what = f"it ends at offset {ended.next_offset - 1}, and the log does not go on there"
        look.findings.append(Finding(DAMAGE, path, what, size))


def _promised_end(view: View) -> int:
    return view.checkpoint.state.next_offset if view.checkpoint else 0


def _segment(look: Look, view: View, base: int) -> None:
    files, path = look.files, names.log(look.directory, base)
    log_fd = files.open(path, write=False)
    try:
        limit = view.limit(base, files.size(log_fd))
        next_base = view.next_base(base)
        builder, lost = IndexBuilder(base), list[Lost]()
        counts, shown = look.counts, 0

        def each(position: int, header: BatchHeader) -> None:
            nonlocal shown
            builder.add(position, header)
            counts.batches += 1
            counts.records += header.record_count
            if position - shown > _PROGRESS_BYTES:
                look.progress(position - shown)
                shown = position

        ended = walk(files, log_fd, path, (0, base), each, lost.append, limit, next_base)
        look.progress(max(0, limit - shown))
    finally:
        files.close(log_fd)
    counts.segments += 1
    counts.size_bytes += limit
    look.end = ended.next_offset
    is_last = base == view.bases[-1]
    for one in lost:
        look.findings.append(_torn_tail(view, one) if is_last and _is_torn_tail(view, one) else Finding.of(one))
    if next_base is not None and ended.next_offset > next_base and not view.goes_on_at(ended.next_offset):
        what = f"it goes on to offset {ended.next_offset - 1}, where the log goes on with {next_base} after it"
        look.findings.append(Finding(DAMAGE, path, what, ended.position))
    if not is_last and not lost:
        _indexes(look, base, builder)


def _is_torn_tail(view: View, lost: Lost) -> bool:
    """Whether recovery will cut this as what a power cut leaves: past the checkpoint, nothing sound after it."""
    if view.state is not None or lost.next_offset is not None:
        return False
    return view.head is HeadKind.OTHER_BOOT and lost.offset >= _promised_end(view)


def _torn_tail(view: View, lost: Lost) -> Finding:
    what = f"a torn tail, as a power cut leaves it ({lost.reason}): it is cut when the log is opened"
    return Finding(WARNING, lost.file, what, lost.position, lost.size_bytes)


def _indexes(look: Look, base: int, builder: IndexBuilder) -> None:
    """The indexes of a closed segment, beside what they would be if they were made anew."""
    builder.add_time()
    for path, due in (
        (names.index(look.directory, base), builder.index),
        (names.timeindex(look.directory, base), builder.time_index),
    ):
        try:
            found = read_whole(look.files, path)
        except FileNotFoundError:
            what = "the index is missing: it is made anew when somebody looks something up in it"
        else:
            if found == bytes(due):
                continue
            what = "the index is not what its log says: it is not relied on, and made anew when that shows"
        look.say(WARNING, path, what)


# -- what lies beside the segments


def _beside(look: Look, view: View) -> None:
    bases = {*view.bases, *view.others}
    for name in sorted(look.files.listdir(look.directory)):
        path = f"{look.directory}/{name}"
        if name.endswith(TEMPORARY):
            look.say(INFORMATION, path, "being written, or left over from a process that died while it wrote it")
        elif not names.is_partition_file(name):
            look.say(DAMAGE, path, "a foreign file: taskq has not written it; move it away")
        elif names.is_aside(name):
            _aside(look, path)
        elif (base := names.index_base_offset(name)) is not None and base not in bases:
            look.say(INFORMATION, path, "left over: there is no segment to this index")
    for base in view.others:
        what = "not part of the log: about to be removed, or begun just now, or by a writer that died"
        look.say(INFORMATION, names.log(look.directory, base), what)
    for said in _reports(look):
        look.say(INFORMATION, names.recovery_report(look.directory), said)


def _aside(look: Look, path: str) -> None:
    with suppress(FileNotFoundError):
        size = look.files.size_of(path)
        what = f"{size} bytes with sound batches in them, that recovery has cut; `taskq log dump` shows them"
        look.say(INFORMATION, path, what)


def _reports(look: Look) -> Iterator[str]:
    """What of earlier recoveries a person should know."""
    path = names.recovery_report(look.directory)
    try:
        reports: Any = json.loads(read_whole(look.files, path))
        for report in reports:
            parts = [f"recovered at {report['time']}, since {report['cause']}"]
            if report["cut_bytes"]:
                parts.append(f"{report['cut_bytes']} bytes cut ({report['reason']})")
            if report["missing"]:
                first, after = report["missing"]
                parts.append(f"offsets {first} to {after - 1} were gone, though they had been synced")
            parts += [f"{Lost(**one)}, which had not been synced" for one in report.get("lost", ())]
            parts += report["committed"]
            if len(parts) > 1:
                yield "; ".join(parts)
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError):
        look.say(WARNING, path, "the reports of earlier recoveries can't be read; remove the file if it is of no use")
