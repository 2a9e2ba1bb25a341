"""What is done about dead letters: listing them, sending them to be tried again, letting them go.

A log forgets nothing, so which dead letters a person has resolved (retried or purged) is remembered as what a group is
behind of any topic: as finished offsets, the progress of the one group `__taskq.dead` in `<group>.dead`. What it has
not finished is the list, and its backlog is their number; retention sees what need not be kept. Who resolves is a
member of that group and holds all partitions meanwhile (holding.py), so nobody does it twice at once.

Sent again first, and then finished: who is interrupted in between has sent again what he sends again the next time, at
most a batch. A batch is committed before the next one is begun.

Letters are resolved in any order, for ever, and others stay. So their progress may come not to fit a commit
(progress.py), and nobody could be stopped until it does, as a worker is. Room is made instead: the oldest unresolved
letters are appended to the topic's end as they are, and finished where they were; that takes away the lowest gap, then
the next. It is done before a batch is resolved, a piece at a time, so that what is to be committed always fits:

- a batch has a bounded number of runs, and `Progress.fits` says whether as many more can be stored;
- if moving everything below the batch does not make enough room, for what is above it is in too many pieces, then its
  runs are resolved one by one, all below each being moved first: what begins at the lowest unfinished offset adds no
  piece.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from attrs import frozen

from taskq.broker.port import Broker, Committed, Lost, Message, PartitionBounds, Reader, Record, TopicPartition
from taskq.errors import TaskqError
from taskq.topics import INTERNAL, dead_topic, retry_topic
from taskq.worker.deadletters import DeadLetter, read_letter, sent_again
from taskq.worker.holding import Held, holding
from taskq.worker.progress import ENCODED_BYTES_MAX, HOLES_MAX, Progress, count_finished

RESOLVED = f"{INTERNAL}dead"
"""The group whose progress says what has been retried or purged."""

WAIT_S = 10.0
"""How long to wait for others who are at it."""

BATCH_MAX = 1000
"""How many are resolved between two commits, and"""
BATCH_BYTES_MAX = 8 * 1024 * 1024
"""how large they are, and"""
RUNS_MAX = 100
"""in how many pieces, and"""
SPAN_MAX = HOLES_MAX // 2
"""how far apart."""

_ROOM = 0.75
"""Room is made until so much of a commit is enough, so that it need not be made for every batch."""

_LOOK_BYTES = 256 * 1024
"""How much to read of a partition at a time."""

_log = logging.getLogger("taskq.worker")

CLOCKS_MS = 60_000
"""How much earlier than it was given up a letter may seem to be kept: that is rounded, and clocks differ."""

Told = Callable[[int, int], object]
"""Called now and then, with how many more letters were looked at, and how many resolved; first before any is. What it
raises ends it: all that was told is resolved then, and nothing else."""


def _nobody(looked_at: int, resolved: int) -> None:
    """Nobody wants to know."""


@frozen
class Filter:
    """Which dead letters are meant. None: any."""

    task: str | None = None
    reason: str | None = None
    since_ms: int | None = None
    """Those given up then or later."""

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is one of them."""
        return (
            (self.task is None or letter.task == self.task)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since_ms is None or letter.time_ms >= self.since_ms)
        )


ALL = Filter()

Chosen = Filter | Sequence[str]
"""A filter, or ids: of the invocation, which several letters may have, or places, `<partition>@<offset>`."""


# --- looking


def list_dead(broker: Broker, group: str, chosen: Filter = ALL) -> Iterator[DeadLetter]:
    """The dead letters of `group` that nobody has resolved, about in the order in which they were given up.

    Few are held in memory at a time. What is damaged is passed over, with a warning in the log.
    """
    admin, topic = broker.admin(), dead_topic(group)
    if topic not in admin.topics():
        return
    resolved = admin.describe_group(RESOLVED).committed
    reader = broker.reader()
    scans: list[Iterator[DeadLetter]] = []
    for number, bounds in enumerate(admin.describe_topic(topic).partitions):
        tp = TopicPartition(topic, number)
        scans.append(_letters(reader, tp, _progress_of(tp, bounds, resolved.get(tp)), bounds.end, chosen))
    try:
        yield from heapq.merge(*scans, key=lambda letter: letter.time_ms)
    finally:
        reader.close()


def count_dead(bounds: PartitionBounds, resolved: Committed | None) -> int:
    """How many dead letters of a partition nobody has resolved. Costs the same however many there are."""
    if resolved is None or resolved.offset < bounds.start:  # what was finished below the start is not to be counted
        progress = _progress_of(TopicPartition("", 0), bounds, resolved)
        return bounds.end - progress.low - progress.finished_above
    try:
        above = count_finished(resolved.metadata)
    except ValueError:
        above = 0
    return max(0, bounds.end - resolved.offset - above)


def _progress_of(tp: TopicPartition, bounds: PartitionBounds, resolved: Committed | None) -> Progress:
    """What is resolved, or is there no more."""
    resolved = resolved or Committed(bounds.start)
    try:
        progress = Progress.decode(resolved.offset, resolved.metadata)
    except ValueError as error:
        _log.warning("%s: what is resolved above offset %d can't be read: %s", tp, resolved.offset, error)
        progress = Progress(resolved.offset)
    progress.finish_range(progress.low, bounds.start)
    return progress


def _letters(
    reader: Reader,
    tp: TopicPartition,
    progress: Progress,
    stop: int,
    chosen: Filter,
    told: Callable[[int], object] = bool,
) -> Iterator[DeadLetter]:
    """Those of a partition below `stop` that `chosen` takes. What was yielded before may be finished meanwhile."""
    start = 0
    if chosen.since_ms is not None:  # kept since about when it was given up, or later if it was moved
        start = reader.offset_for(tp, max(0, chosen.since_ms - CLOCKS_MS))
    for records in _unresolved(reader, tp, progress, range(start, stop)):
        told(len(records))
        for letter in (read_letter(tp, record) for record in records):
            if chosen.takes(letter):
                yield letter


def _unresolved(reader: Reader, tp: TopicPartition, progress: Progress, within: range) -> Iterator[list[Record]]:
    """The unfinished records of a partition in order, some at a time. What was yielded may be finished meanwhile."""

    def passed_over(lost: Lost) -> None:
        _log.warning("dead letters that can't be read are passed over: %s", lost)

    start = within.start
    for part in progress.unfinished(within.stop):
        start = max(start, part.start)  # what was read before reached over the next parts
        while start < part.stop:
            records = reader.read(tp, start, _LOOK_BYTES, lost=passed_over)
            if not records:
                return
            yield [one for one in records if start <= one.offset < within.stop and not progress.is_finished(one.offset)]
            start = records[-1].offset + 1


# --- resolving


def retry_dead(broker: Broker, group: str, chosen: Chosen, told: Told = _nobody) -> int:
    """Have `group` try again what is `chosen`, with its retries given back to it; return how many that were.

    TaskqError if one of the ids is not that of a dead letter: then nothing is changed.
    """
    if group.startswith(INTERNAL):
        raise TaskqError(f"what {group} gave up on does not say where to go: it can be purged, not retried")
    with _opened(broker, group, told) as office:
        return office.resolve(chosen, office.send_again)


def purge_dead(broker: Broker, group: str, chosen: Chosen, told: Told = _nobody) -> int:
    """Let go of what is `chosen`; return how many that were. Raises as `retry_dead` does.

    With `ALL` that includes what can't be read.
    """
    with _opened(broker, group, told) as office:
        return office.finish_all() if chosen == ALL else office.resolve(chosen, lambda letters: None)


@contextmanager
def _opened(broker: Broker, group: str, told: Told) -> Generator[_Office]:
    topic = dead_topic(group)
    is_there = topic in broker.admin().topics()
    with holding(broker, RESOLVED, topic, WAIT_S) if is_there else nullcontext() as held:
        office = _Office(group, broker, told, held)
        try:
            yield office
        finally:
            office.close()


class _Office:
    """The dead letters of a group while they are held. What comes meanwhile is not looked at."""

    def __init__(self, group: str, broker: Broker, told: Told, held: Held | None) -> None:
        self._group = group
        self._told = told
        self._held = held
        self._reader = broker.reader()
        self._producer = broker.producer()
        self._progress: dict[TopicPartition, Progress] = {}
        self._ends: dict[TopicPartition, int] = {}
        for tp, resolved in sorted(held.committed.items()) if held is not None else ():
            bounds = self._reader.bounds(tp)
            self._progress[tp], self._ends[tp] = _progress_of(tp, bounds, resolved), bounds.end

    def close(self) -> None:
        self._reader.close()
        self._producer.close()

    def resolve(self, chosen: Chosen, act: Callable[[Sequence[DeadLetter]], object]) -> int:
        """Do it to all that is chosen, and finish that."""
        count = 0
        for tp, letters in self._filtered(chosen) if isinstance(chosen, Filter) else self._named(chosen):
            for batch in _batches(letters):
                for piece in self._pieces(tp, batch):
                    act(piece)
                    self._progress[tp].finish([letter.record.offset for letter in piece])
                    self._commit(tp)
                    self._told(0, len(piece))
                    count += len(piece)
        return count

    def finish_all(self) -> int:
        """Finish everything, unseen."""
        count = 0
        self._told(0, 0)
        for tp, progress in self._progress.items():
            left = max(0, self._ends[tp] - progress.low - progress.finished_above)
            if left:
                progress.finish_range(progress.low, self._ends[tp])
                self._commit(tp)
            self._told(left, left)
            count += left
        return count

    def send_again(self, letters: Sequence[DeadLetter]) -> None:
        """Publish them to where the group tries again."""
        now_ms = int(time.time() * 1000)
        self._producer.send_many(retry_topic(self._group), [sent_again(letter, now_ms) for letter in letters])

    def _commit(self, tp: TopicPartition) -> None:
        assert self._held is not None
        progress = self._progress[tp]
        self._held.commit(tp, Committed(progress.low, progress.encode()))

    # -- choosing

    def _filtered(self, chosen: Filter) -> Iterator[tuple[TopicPartition, Iterator[DeadLetter]]]:
        for tp in self._progress:
            yield tp, self._scan(tp, chosen)

    def _scan(self, tp: TopicPartition, chosen: Filter) -> Iterator[DeadLetter]:
        return _letters(
            self._reader, tp, self._progress[tp], self._ends[tp], chosen, lambda looked_at: self._told(looked_at, 0)
        )

    def _named(self, names: Sequence[str]) -> list[tuple[TopicPartition, Iterator[DeadLetter]]]:
        wanted, missing = set(names), set(names)
        offsets: dict[TopicPartition, list[int]] = {}
        for tp in self._progress:
            for letter in self._scan(tp, ALL):
                known = wanted & {letter.id, letter.place}
                if known:
                    missing -= known
                    offsets.setdefault(tp, []).append(letter.record.offset)
        if missing:
            raise TaskqError(
                f"group {self._group} has no dead letter {', '.join(sorted(missing))}: nothing was changed; "
                f"`taskq dead list -g {self._group}` shows those it has"
            )
        return [(tp, self._at(tp, found)) for tp, found in offsets.items()]

    def _at(self, tp: TopicPartition, offsets: Sequence[int]) -> Iterator[DeadLetter]:
        for offset in offsets:
            yield from (read_letter(tp, one) for one in self._reader.read(tp, offset, 1)[:1] if one.offset == offset)

    # -- making room

    def _pieces(self, tp: TopicPartition, batch: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
        """The batch in pieces each of which can be finished when its turn comes."""
        if self._make_room(tp, batch):
            yield batch
            return
        for run in _runs(batch):
            self._make_room(tp, run)
            yield run

    def _make_room(self, tp: TopicPartition, batch: list[DeadLetter]) -> bool:
        """Move what is unresolved below `batch` to the topic's end until the batch can be finished. False: it is all
        moved, so the first run of the batch can be."""
        progress, first = self._progress[tp], batch[0].record.offset
        if _has_room(progress, batch):
            return True
        _log.info("%s: so much of it is resolved here and there that what is not is moved to its end", tp)
        for records in _unresolved(self._reader, tp, progress, range(first)):
            for start in range(0, len(records), BATCH_MAX):
                moved = records[start : start + BATCH_MAX]
                self._producer.send_many(tp.topic, [Message(one.value, one.key, one.headers) for one in moved])
                progress.finish_range(progress.low, moved[-1].offset + 1)
                self._commit(tp)
                if _has_room(progress, batch, _ROOM):
                    return True
        progress.finish_range(progress.low, first)  # what can't be read, at the end
        return _has_room(progress, batch)


def _has_room(progress: Progress, batch: list[DeadLetter], part: float = 1.0) -> bool:
    """Whether progress stays within `part` of its limits when `batch` is finished, too."""
    top = batch[-1].record.offset + 1
    unfinished = max(top, progress.high) - progress.low - progress.finished_above
    # A run splits a gap: the length of a gap, which `fits` knows, and its own, in one byte or two.
    splits = 2 * len(_runs(batch))
    return unfinished <= HOLES_MAX * part and progress.fits(int(ENCODED_BYTES_MAX * part), splits, top)


def _runs(batch: list[DeadLetter]) -> list[list[DeadLetter]]:
    """The batch cut where offsets are left out."""
    runs: list[list[DeadLetter]] = []
    for letter in batch:
        if runs and letter.record.offset == runs[-1][-1].record.offset + 1:
            runs[-1].append(letter)
        else:
            runs.append([letter])
    return runs


def _batches(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """Letters of one partition, in order, as what is resolved between two commits."""
    batch: list[DeadLetter] = []
    size = runs = 0
    for letter in letters:
        offset = letter.record.offset
        is_apart = not batch or offset != batch[-1].record.offset + 1
        is_full = len(batch) >= BATCH_MAX or size >= BATCH_BYTES_MAX or runs + is_apart > RUNS_MAX
        if batch and (is_full or offset - batch[0].record.offset >= SPAN_MAX):
            yield batch
            batch, size, runs, is_apart = [], 0, 0, True
        batch.append(letter)
        size += _size_of(letter.record)
        runs += is_apart
    if batch:
        yield batch


def _size_of(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
