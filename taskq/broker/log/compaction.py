"""Compaction: of every key the record with the highest offset stays.

It works on closed segments only, and in passes. A pass first reads what is dirty, that is, what has come since the last
pass, and notes of each key its highest offset there. Then it goes through all segments from the first on and leaves
out each record whose key has a higher one, and each tombstone (a record without a value) that is older than
delete_retention_ms: whatever its key had before is gone by then. At last, small neighbours are joined.

What stays is what it was, byte for byte, in its order, at its offset. The offsets of what goes are covered, so that a
reader can still tell a gap from damage: the batch before goes on over them, or a batch without records does. (Batches
of idempotent producers are not widened: how many records were sent is told by their offsets.)

What must be true after a power cut:

- A tombstone goes only after all that is older of its key. So segments are replaced in their order, each durably
  before the next (replacement.py), and how far a pass has come is written when all of it is done.
- What idempotent producers sent is in a snapshot before it is touched (idempotence.remember).

At damage a pass stops: the damaged segment and all after it are left as they are until there is a sound batch again at
the place of the damage, and every report says so.

A record without a key, from when the topic was not compacted, stays.

Memory: the map has at most about `keys_max` keys, of 16 bytes each and what Python adds, some 150 MB for a million.
If there are more, a pass ends where it is full, and the next one begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import pairwise

from attrs import asdict, define, evolve, frozen

from taskq.broker.log import names, replacement
from taskq.broker.log.batch import BadBatch
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files, read_whole, write_whole
from taskq.broker.log.head import HeadState
from taskq.broker.log.idempotence import remember
from taskq.broker.log.partition import Partition
from taskq.broker.log.recovery import segment_bases
from taskq.broker.log.rewriting import (
    CONTROL,
    Keep,
    Pace,
    Rest,
    Segment,
    SegmentWriter,
    Stopped,
    batches_of,
    records_of,
    reduced,
)
from taskq.broker.log.scan import sound_batch
from taskq.broker.log.sealed import decode_sealed, encode_sealed
from taskq.broker.port import Record
from taskq.errors import CorruptLog, TopicNotFound

KEYS_MAX = 1_000_000
_DIGEST_BYTES = 16
_SPAN_MAX = (1 << 31) - 1  # offsets of a segment: they must fit the index's int32
_NEVER = 1 << 62


@frozen
class CompactionSettings:
    """How a topic is compacted. The names are Kafka's, as in the topic's settings."""

    segment_bytes: int
    delete_retention_ms: int
    min_cleanable_dirty_ratio: float = 0.5
    keys_max: int = KEYS_MAX


@frozen
class CompactionReport:
    """What a call of `compact` did."""

    directory: str
    cleaned: int
    """Everything below this offset is compacted."""
    has_worked: bool = False
    """False if there was too little to do."""
    bytes_before: int = 0
    bytes_after: int = 0
    records_removed: int = 0
    segments_joined: int = 0
    """How many segments became part of the one before."""
    damage: str = ""
    """Where compaction stopped, and why."""
    is_cut_short: bool = False
    """It was told to stop. The next pass does all of it again, but what has become small is soon done."""


@frozen
class _Progress:
    """What the file `compacted` says. It is written when a pass is done, so it may say too little, never too much."""

    cleaned: int = 0
    tombstone_ms: int = _NEVER
    """The timestamp of the oldest tombstone below `cleaned`."""
    stopped: tuple[int, int] | None = None
    """Base of a segment that is damaged, and the byte at which it is."""
    damage: str = ""


@define
class _Pass:
    """Decides of each record whether it stays."""

    newest: dict[bytes, int]
    limit: int
    """The map says all of the keys below this offset."""
    tombstones_before_ms: int
    pace: Pace
    oldest_tombstone_ms: int = _NEVER
    removed: int = 0

    def keeps(self, record: Record) -> bool:
        if record.key is None or record.offset >= self.limit:
            return True
        if self.newest.get(_digest(record.key), -1) > record.offset:
            self.removed += 1
            return False
        if record.value is None:
            if record.timestamp_ms <= self.tombstones_before_ms:
                self.removed += 1
                return False
            self.oldest_tombstone_ms = min(self.oldest_tombstone_ms, record.timestamp_ms)
        return True


def compact(
    files: Files,
    partition: Partition,
    settings: CompactionSettings,
    now_ms: int,
    rest: Rest = lambda _seconds: False,
) -> CompactionReport:
    """Compact the closed segments of a partition, if it pays: at least `min_cleanable_dirty_ratio` of
    their bytes have come since the last time, or a tombstone is due.

    Nobody else may compact or remove segments meanwhile: hold the cleaner's lock. Others may append and read. Raises
    StorageFull or StorageError, after which the log is as sound as before and the next call goes on; TopicNotFound.
    Between segments and after each MiB it calls `rest`, and leaves if that says so: the same is true then.
    """
    directory = partition.directory
    try:
        replacement.finish(files, directory, partition.undeleted)
        replacement.remove_temporary(files, directory)
        with suppress(Stopped):
            return _compact(files, partition, settings, now_ms, Pace(rest))
        return CompactionReport(directory, _read_progress(files, directory).cleaned, is_cut_short=True)
    except OSError as error:
        with suppress(OSError):
            replacement.remove_temporary(files, directory)
        if partition.is_deleted:
            raise TopicNotFound(f"{partition.name}: the topic has been deleted") from None
        raise storage_error(partition.name, directory, error) from error


def _compact(
    files: Files, partition: Partition, settings: CompactionSettings, now_ms: int, pace: Pace
) -> CompactionReport:
    directory = partition.directory
    state = partition.head.state()
    progress = _read_progress(files, directory)
    segments = _closed_segments(files, directory, state)
    usable = _before_damage(files, directory, segments, progress)
    if len(usable) == len(segments):
        progress = evolve(progress, stopped=None, damage="")
    due_ms = now_ms - settings.delete_retention_ms
    report = CompactionReport(directory, progress.cleaned, damage=progress.damage)
    if not _pays(usable, progress, settings.min_cleanable_dirty_ratio, due_ms):
        return report
    try:
        remember(files, partition, state, now_ms)
    except CorruptLog as error:
        return evolve(report, damage=str(error))
    work = _Pass({}, progress.cleaned, due_ms, pace)
    stopped = _note_keys(files, directory, usable, work, settings.keys_max)
    done: list[Segment] = []
    for segment in usable:
        if segment.base >= work.limit:
            break
        try:
            done.append(_replace(files, partition, [segment], work.keeps, pace))
        except BadBatch as bad:
            stopped = _Damaged(segment, bad)
            break
    joined = _join(files, partition, done, settings.segment_bytes, pace)
    if stopped is None or stopped.segment.base >= work.limit:
        progress = evolve(progress, cleaned=work.limit, tombstone_ms=work.oldest_tombstone_ms)
    if stopped is not None:
        damage = f"{names.log(directory, stopped.segment.base)}: {stopped.what}"
        progress = evolve(progress, stopped=(stopped.segment.base, stopped.what.position), damage=damage)
    _write_progress(files, partition, progress)
    return CompactionReport(
        directory,
        progress.cleaned,
        has_worked=True,
        bytes_before=sum(segment.size for segment in usable[: len(done)]),
        bytes_after=sum(segment.size for segment in joined),
        records_removed=work.removed,
        segments_joined=len(done) - len(joined),
        damage=progress.damage,
    )


# -- what there is to do


@frozen
class _Damaged:
    segment: Segment
    what: BadBatch


def _closed_segments(files: Files, directory: str, state: HeadState) -> list[Segment]:
    bases = [base for base in segment_bases(files, directory) if base <= state.segment_base]
    while len(bases) > 1 and bases[1] <= state.start_offset:
        bases.pop(0)  # retention was about to remove it
    return [Segment(base, end, files.size_of(names.log(directory, base))) for base, end in pairwise(bases)]


def _before_damage(files: Files, directory: str, segments: Sequence[Segment], progress: _Progress) -> Sequence[Segment]:
    """The segments before the one that was found to be damaged, if it still is."""
    if progress.stopped is None:
        return segments
    base, position = progress.stopped
    for number, segment in enumerate(segments):
        if segment.base == base:
            fd = files.open(names.log(directory, base), write=False)
            try:
                return segments if sound_batch(files, fd, position, segment.size) else segments[:number]
            finally:
                files.close(fd)
    return segments


def _pays(segments: Sequence[Segment], progress: _Progress, ratio: float, due_ms: int) -> bool:
    total = sum(segment.size for segment in segments)
    dirty = sum(segment.size for segment in segments if segment.end > progress.cleaned)
    has_due_tombstones = bool(segments) and progress.tombstone_ms <= due_ms
    return has_due_tombstones or (dirty > 0 and dirty >= total * ratio)


def _note_keys(
    files: Files, directory: str, segments: Sequence[Segment], work: _Pass, keys_max: int
) -> _Damaged | None:
    """Note the highest offset of each key from `work.limit` on, and move that to where the map was full, or to the end.

    Returns what is damaged, if that ended it.
    """
    newest = work.newest
    first = work.limit
    for segment in segments:
        if segment.end <= first:
            continue
        try:
            for header, raw in batches_of(files, directory, segment, work.pace):
                if header.next_offset <= first:
                    continue
                for record, _ in records_of(header, raw):
                    if record.key is not None:
                        newest[_digest(record.key)] = record.offset
                work.limit = header.next_offset
                if len(newest) >= keys_max:
                    return None
        except BadBatch as bad:
            work.limit = max(first, segment.base)
            return _Damaged(segment, bad)
        work.limit = segment.end
    return None


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=_DIGEST_BYTES).digest()


# -- rewriting


def _replace(
    files: Files, partition: Partition, segments: Sequence[Segment], keeps: Keep | None, pace: Pace
) -> Segment:
    """Put what stays of these neighbours in their place, as one segment. Raises BadBatch at damage, Stopped."""
    directory, base, end = partition.directory, segments[0].base, segments[-1].end
    writer = SegmentWriter(files, replacement.temporary(names.log(directory, base)), base)
    has_changed = len(segments) > 1
    try:
        for segment in segments:
            for header, raw in batches_of(files, directory, segment, pace):
                staying = (header, raw) if keeps is None else reduced(header, raw, keeps)
                has_changed = has_changed or staying is None or staying[0] is not header
                if staying is not None and (header.record_count or header.attributes & CONTROL):
                    writer.add(*staying)
        writer.finish(end)
    except (BadBatch, Stopped):
        writer.discard()
        raise
    finally:
        writer.close()
    if not has_changed:
        writer.discard()
        return segments[0]
    replacement.write_indexes(files, directory, base, writer.index)
    bases = [segment.base for segment in segments]
    replacement.announce(files, directory, bases, end, partition.undeleted())
    replacement.remove_indexes(files, directory, base)
    with partition.undeleted():
        files.rename(replacement.temporary(names.log(directory, base)), names.log(directory, base))
    files.sync_directory(directory)
    for path in replacement.paths(directory, base)[1:]:
        files.rename(replacement.temporary(path), path)
    if len(bases) > 1:
        replacement.remove_others(files, directory, bases[1:], partition.undeleted)
    return Segment(base, end, writer.size)


def _join(
    files: Files, partition: Partition, segments: Sequence[Segment], segment_bytes: int, pace: Pace
) -> list[Segment]:
    """Join neighbours that fit into one segment; return what there is then."""
    groups: list[list[Segment]] = []
    for segment in segments:
        group = groups[-1] if groups else []
        size = sum(one.size for one in group) + segment.size
        if group and size <= segment_bytes and segment.end - group[0].base <= _SPAN_MAX:
            group.append(segment)
        else:
            groups.append([segment])
    return [group[0] if len(group) == 1 else _replace(files, partition, group, None, pace) for group in groups]


# -- how far it has come


def _read_progress(files: Files, directory: str) -> _Progress:
    try:
        document = decode_sealed(read_whole(files, names.compacted(directory)))
    except FileNotFoundError:
        document = None
    if document is None:
        return _Progress()  # all is dirty
    stopped = document["stopped"]
    return _Progress(
        document["cleaned"], document["tombstone_ms"], tuple(stopped) if stopped else None, document["damage"]
    )


def _write_progress(files: Files, partition: Partition, progress: _Progress) -> None:
    path = names.compacted(partition.directory)
    write_whole(files, path, encode_sealed(asdict(progress)), partition.undeleted())
