"""What a log must hold, said as slowly and plainly as can be: lists of what was appended, and how it was acknowledged.

The log of a partition is what append after append has returned, batch by batch. After a power cut it may end earlier,
between two batches, but never below what was acknowledged as durable; after a failed fsync what was appended since the
last good one may be gone, but its offsets are not given out again. Nothing else may ever be different.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

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
    commits: dict[str, list[tuple[Committed, int]]] = field(factory=dict)
    """By group: what was committed, and where the log ended then. Since commits are not synced one by one, a power cut
    may bring back any of them; the first is older than all cuts."""
    commits_failed: dict[str, list[tuple[Committed, int]]] = field(factory=dict)
    """Those since the last good one that raised, or never returned: they may be there after all."""

    @property
    def end(self) -> int:
        return self.batches[-1].next_offset if self.batches else 0

    def appended(self, base: int, plain: Sequence[Plain]) -> None:
        if base != self.end:
            raise Wrong(f"an append got offset {base} where {self.end} was due")
        self.batches.append(batch_of(base, plain))
        self.in_flight.clear()

    def failed(self, plain: Sequence[Plain]) -> None:
        """An append did not return."""
        self.in_flight.append(batch_of(self.end, plain))

    def check(self, found: Sequence[Record], end: int) -> None:
        """`found` is what is readable of a log that nobody has cut."""
        if self.is_suspect:
            self._match(found)
            return
        if end != self.end:
            raise Wrong(f"the log ends at {end}, not at {self.end}")
        expected = [record for batch in self.batches for record in batch.records]
        if list(found) != expected:
            raise Wrong(difference(found, expected))

    def check_acknowledged(self, offsets: Sequence[int]) -> None:
        """A sync has returned to who appended these: it must not have been told so if they are gone."""
        for batch in self.batches:
            for offset in offsets:
                if batch.base <= offset < batch.next_offset and not batch.records:
                    raise Wrong(f"offset {offset} is said to be durable, and was lost when an fsync failed")

    def cut(self, found: Sequence[Record], end: int) -> int:
        """A power cut: `found` is what is left. Returns how many records were lost."""
        had = self.end
        batches, rest = self._match(found)
        if rest:
            again = [batch for batch in self.in_flight if batch.records == list(rest)]
            if not again or len(batches) != len(self.batches):
                raise Wrong(f"nobody appended {brief(rest)} after offset {batches[-1].next_offset if batches else 0}")
            batches.append(again[0])
        kept = batches[-1].next_offset if batches else 0
        while len(batches) < len(self.batches) and not self.batches[len(batches)].records and kept < end:
            batches.append(self.batches[len(batches)])  # a batch without records leaves no trace but the end
            kept = batches[-1].next_offset
        if kept < self.synced:
            raise Wrong(f"offsets {kept} to {self.synced} are lost, though they had been acknowledged as durable")
        if self.is_suspect and kept < end == had:  # it had been repaired just before
            batches.append(Batch(kept, end - kept, []))
        elif end != kept:
            raise Wrong(f"the log ends at {end}, but what can be read of it ends at {kept}")
        self.batches, self.synced, self.is_suspect = batches, end, False
        self.in_flight.clear()
        return max(0, had - end)

    def repaired(self, found: Sequence[Record], end: int) -> int:
        """Reopened after a failed fsync. Returns how many offsets have lost their records."""
        batches, rest = self._match(found)
        if rest:
            raise Wrong(f"nobody appended {brief(rest)}")
        had = self.end
        if end != had:
            raise Wrong(f"after the repair the log ends at {end}, not at {had}")
        kept = batches[-1].next_offset if batches else 0
        while kept < had and not self.batches[len(batches)].records:
            batches.append(self.batches[len(batches)])
            kept = batches[-1].next_offset
        if kept < self.synced:
            raise Wrong(f"after the repair offsets {kept} to {self.synced} are lost, though they were durable")
        if kept < had:
            batches.append(Batch(kept, had - kept, []))
        self.batches, self.synced, self.is_suspect = batches, had, False
        self.in_flight.clear()
        return had - kept

    def _match(self, found: Sequence[Record]) -> tuple[list[Batch], Sequence[Record]]:
        """Those batches from the first on that `found` begins with, and what is left of it."""
        at, kept = 0, 0
        for batch in self.batches:
            size = len(batch.records)
            if list(found[at : at + size]) != batch.records:
                break
            at, kept = at + size, kept + 1
        while kept and at == len(found) and not self.batches[kept - 1].records:
            kept -= 1
        return self.batches[:kept], found[at:]

    # -- groups

    def committed(self, group: str, committed: Committed) -> None:
        self.commits.setdefault(group, []).append((committed, self.end))
        self.commits_failed.pop(group, None)

    def commit_failed(self, group: str, committed: Committed) -> None:
        self.commits_failed.setdefault(group, []).append((committed, self.end))

    def check_commit(self, group: str, found: Committed | None) -> None:
        """Nobody has cut anything: the last commit holds."""
        commits = self.commits.get(group)
        last = commits[-1][0] if commits else None
        if found != last and found not in [committed for committed, _ in self.commits_failed.get(group, ())]:
            raise Wrong(f"group {group} has committed {found}, not {last}")

    def cut_commit(self, group: str, found: Committed | None) -> None:
        """The log was recovered: `found` must be one of the commits made, less what is gone, or nothing at all."""
        commits = self.commits.pop(group, []) + self.commits_failed.pop(group, [])
        if found is None:
            return
        end = self.end
        if found.offset > end:
            raise Wrong(f"group {group} has committed {found.offset}, past the log's end {end}")
        for committed, end_then in commits:
            if found == committed and end_then <= end:
                break
            if found.offset == min(committed.offset, end) and not found.metadata:
                break
        else:
            raise Wrong(f"group {group} has committed {found}, which it never did: {commits}")
        self.commits[group] = [(found, end)]


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
