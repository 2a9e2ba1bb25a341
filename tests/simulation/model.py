"""What a log must hold, said as slowly and plainly as can be: lists of what was appended, and how it was acknowledged.

The log of a partition is what append after append has returned, batch by batch. After a power cut it may end earlier,
between two batches, but never below what was acknowledged as durable; after a failed fsync any batch that was appended
since the last good one may be gone, but its offsets are not given out again. Nothing else may ever be different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field

from taskq.broker.log import offsets
from taskq.broker.port import Committed, Headers, Record

Plain = tuple[int, bytes | None, bytes, Headers]
"""A record without its offset: timestamp, key, value, headers."""


class Wrong(AssertionError):
    """The log is not what it must be."""


@define
class Batch:
    """What one append added. Without records: offsets of which nothing is left, after a failed fsync."""

    base: int
    count: int
    records: list[Record]

    @property
    def next_offset(self) -> int:
        return self.base + self.count

    def without_records(self) -> Batch:
        return Batch(self.base, self.count, [])


def batch_of(base: int, plain: Sequence[Plain]) -> Batch:
    records = [Record(base + delta, ms, key, value, headers) for delta, (ms, key, value, headers) in enumerate(plain)]
    return Batch(base, len(plain), records)


@define
class PartitionModel:
    """One partition as everybody must see it."""

    batches: list[Batch] = field(factory=list)
    synced: int = 0
    """Everything below this offset was acknowledged as durable."""
    in_flight: list[Batch] = field(factory=list)
    """Appends at the end that raised, or never returned: after a power cut one of them may be there after all."""
    is_suspect: bool = False
    """An fsync failed: what is not synced may be unreadable until somebody reopens the partition."""
    groups: dict[str, GroupModel] = field(factory=dict)
    start: int = 0
    """Where the log begins."""
    start_durable: int = 0
    """Where it begins at least after a power cut."""
    is_cleaning: bool = False
    """Retention did not return: the log may begin later, after any batch."""

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else self.start

    def cleaned(self, start: int) -> None:
        """Retention has returned, and the log begins at `start` for good."""
        if start != self.start and start not in [batch.next_offset for batch in self.batches]:
            raise Wrong(f"retention has removed a part of a batch: the log begins at {start}")
        self.batches = [batch for batch in self.batches if batch.base >= start]
        self.start = self.start_durable = start
        self.is_cleaning = False

    def look(self, start: int) -> None:
        """Nobody has cut anything, and the log begins at `start`."""
        if self.is_cleaning and start > self.start and start in [batch.next_offset for batch in self.batches]:
            self.start = start
        elif start != self.start:
            raise Wrong(f"the log begins at {start}, not at {self.start}")

    def appended(self, base: int, plain: Sequence[Plain]) -> None:
        if base != self.end:
            raise Wrong(f"an append got offset {base} where {self.end} was due")
        self.batches.append(batch_of(base, plain))
        self.in_flight.clear()

    def failed(self, plain: Sequence[Plain]) -> None:
        """An append did not return."""
        self.in_flight.append(batch_of(self.end, plain))

    def check(self, found: Sequence[Record], start: int, end: int) -> None:
        """`found` is what is readable of a log that nobody has cut."""
        self.look(start)
        if self.is_suspect:
            self._match(found)
            return
        if end != self.end:
            raise Wrong(f"the log ends at {end}, not at {self.end}")
        expected = [record for batch in self._visible for record in batch.records]
        if list(found) != expected:
            raise Wrong(difference(found, expected))

    def check_acknowledged(self, offsets: Sequence[int]) -> None:
        """A sync has returned to who appended these: it must not have been told so if they are gone."""
        for batch in self.batches:
            for offset in offsets:
                if batch.base <= offset < batch.next_offset and not batch.records:
                    raise Wrong(f"offset {offset} is said to be durable, and was lost when an fsync failed")

    @property
    def _visible(self) -> list[Batch]:
        return [batch for batch in self.batches if batch.base >= self.start]

    def cut(self, found: Sequence[Record], start: int, end: int) -> int:
        """A power cut: `found` is what is left. Returns how many records were lost."""
        had = self.end
        if start < self.start_durable or (start > self.start and not self.is_cleaning):
            raise Wrong(f"the log begins at {start}, not between {self.start_durable} and {self.start}")
        self.start = min(self.start, start)
        self.cleaned(start)
        batches, rest = self._match(found, self._may_be_lost)
        if rest:
            again = [batch for batch in self.in_flight if batch.records == list(rest)]
            if not again or len(batches) != len(self.batches):
                raise Wrong(
                    f"nobody appended {brief(rest)}, which is what comes after the first {len(batches)} batches"
                )
            batches.append(again[0])
        kept = batches[-1].next_offset if batches else start
        while len(batches) < len(self.batches) and kept < end:  # without records they leave no trace but the end
            lost = self.batches[len(batches)].without_records()
            if self.batches[len(batches)].records and not self._may_be_lost(lost):
                break
            batches.append(lost)
            kept = lost.next_offset
        if kept < self.synced:
            raise Wrong(f"offsets {kept} to {self.synced} are lost, though they had been acknowledged as durable")
        if end != kept:
            raise Wrong(f"the log ends at {end}, but what can be read of it ends at {kept}")
        self.batches, self.synced, self.is_suspect = batches, end, False
        self.in_flight.clear()
        return max(0, had - end)

    def repaired(self, found: Sequence[Record], start: int, end: int) -> int:
        """Reopened after a failed fsync. Returns how many offsets have lost their records."""
        self.look(start)
        hidden = [batch for batch in self.batches if batch.base < self.start]
        batches, rest = self._match(found, self._may_be_lost)
        if rest:
            raise Wrong(f"nobody appended {brief(rest)} there")
        if end != self.end:
            raise Wrong(f"after the repair the log ends at {end}, not at {self.end}")
        for batch in self._visible[len(batches) :]:
            if batch.records and not self._may_be_lost(batch):
                raise Wrong(f"after the repair offset {batch.base} is lost, though {self.synced} were durable")
            batches.append(batch.without_records())
        lost = sum(batch.count for batch in self.batches if batch.records)
        self.batches, self.synced, self.is_suspect = hidden + batches, end, False
        self.in_flight.clear()
        return lost - sum(batch.count for batch in self.batches if batch.records)

    def _may_be_lost(self, batch: Batch) -> bool:
        """Whether an fsync that failed may have cost us this one, which a repair then replaces."""
        return self.is_suspect and batch.base >= self.synced

    def _match(
        self, found: Sequence[Record], may_be_lost: Callable[[Batch], bool] = lambda _: False
    ) -> tuple[list[Batch], Sequence[Record]]:
        """Those batches from the first on that `found` begins with, and what is left of it.

        Those that may be lost, and are, are among them, without their records; but not at the end: there it can't be
        seen.
        """
        at, matched = 0, list[Batch]()
        for batch in self._visible:
            size = len(batch.records)
            if list(found[at : at + size]) == batch.records:
                at += size
                matched.append(batch)
            elif may_be_lost(batch):
                matched.append(batch.without_records())
            else:
                break
        while matched and at == len(found) and not matched[-1].records:
            matched.pop()
        return matched, found[at:]

    # -- groups

    def group(self, name: str) -> GroupModel:
        return self.groups.setdefault(name, GroupModel())

    def check_commit(self, group: str, found: Committed | None) -> None:
        """Nobody has cut anything: the last commit holds."""
        options = self.group(group).now()
        if found not in [committed for committed, _ in options]:
            raise Wrong(f"group {group} has committed {found}, not {options}")

    def cut_commit(self, group: str, found: Committed | None) -> None:
        """The log was recovered: `found` must be one of the commits made since one that lasts, less what is gone."""
        end = self.end
        if found is not None and found.offset > end:
            raise Wrong(f"group {group} has committed {found.offset}, past the log's end {end}")
        options = self.group(group).ever()
        if not any(_is_left_of(found, *option, end) for option in options):
            raise Wrong(f"group {group} has committed {found}, which is none of {options}")
        self.groups[group] = GroupModel([(found, end)], history=self.group(group).history)


Option = tuple[Committed | None, int]
"""What may be committed, and where the log ended when it was."""


@define
class GroupModel:
    """What one group has committed in one partition. Not every commit is synced: a power cut may bring back any of
    those since the last that was."""

    lasting: list[Option] = field(factory=lambda: [(None, 0)])
    """One of these is on stable storage."""
    since: list[Option] = field(factory=list)
    failed: list[Option] = field(factory=list)
    """Those since the last good one that raised, or never returned: they may be there after all."""
    history: list[Option] = field(factory=list)
    """All that were ever made."""

    def now(self) -> list[Option]:
        return [*(self.since[-1:] or self.lasting), *self.failed]

    def ever(self) -> list[Option]:
        return [*self.lasting, *self.since, *self.failed]

    def taken(self) -> None:
        """Somebody has taken the lease: what was committed is synced."""
        self.lasting, self.since, self.failed = self.now(), [], []

    def committed(self, committed: Committed, end: int) -> None:
        self.since.append((committed, end))
        self.history.append((committed, end))
        self.failed.clear()
        if len(self.since) == offsets.COMMITS_UNSYNCED_MAX:
            self.lasting, self.since = self.since[-1:], []

    def fsync_failed(self) -> None:
        """Any of them may be what the system still has. Whoever takes the lease next can't know that what it finds in
        memory never reached the disk, so a later power cut may uncover one that is older still."""
        self.lasting, self.since, self.failed = [*self.history, *self.ever()], [], []


def _is_left_of(found: Committed | None, committed: Committed | None, end_then: int, end: int) -> bool:
    if found is None or committed is None:
        return found is committed
    if found == committed and end_then <= end:
        return True
    return found.offset == min(committed.offset, end) and not found.metadata


def brief(records: Sequence[Record]) -> str:
    some = ", ".join(f"{record.offset}: {record.value!r:.40}" for record in records[:3])
    return f"[{some}{', ...' if len(records) > 3 else ''}]"


def difference(found: Sequence[Record], expected: Sequence[Record]) -> str:
    for one, other in zip(found, expected, strict=False):
        if one != other:
            return f"found {brief([one])} where {brief([other])} was appended"
    if len(found) < len(expected):
        return f"{brief(expected[len(found) :])} can't be read"
    return f"{brief(found[len(expected) :])} is there and was never appended"
