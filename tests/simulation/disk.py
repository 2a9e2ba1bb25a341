"""A disk that remembers what is durable, and what may be left of the rest when the power goes.

The files are real ones, in a directory that should be in memory (/dev/shm), so that flock and mmap work as ever. Beside
them a journal is kept. Of a file: its bytes as of the last sync, and what has been written and truncated since. Of a
directory: its entries as of the last sync, and what has been created, renamed and removed since. A file's bytes and
its name are separate things, as POSIX has it.

`power_cut` makes a new directory with one state the disk may be in afterwards. Each write since the last sync survives
or vanishes, is torn at any byte or by sectors, becomes zeros, garbage or a copy of what stood elsewhere in the file,
independently of all others: the last may survive where the first does not. So do truncates, and the changes of
directories, but that a rename is one change. A file may have grown without its data.

What is assumed, as SQLite assumes it: bytes that were durable and are not written again stay as they are, also those in
the same sector. The head is in no journal: memory-mapped, it may be anything.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeVar

from attrs import define, field

from taskq.broker.log.files import RealFiles

SECTOR_BYTES = 512
HEAD = "head"

T = TypeVar("T")


class Write(NamedTuple):
    position: int
    data: bytes


class Truncate(NamedTuple):
    size: int


@define(eq=False)
class File:
    """A file's bytes as of its last sync, and what happened to them since."""

    durable: bytearray = field(factory=bytearray)
    pending: list[Write | Truncate] = field(factory=list)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.durable, change)
        self.pending.clear()


@define(eq=False)
class Directory:
    """A directory's entries as of its last sync, what they are now, and the changes between."""

    durable: dict[str, Node] = field(factory=dict)
    live: dict[str, Node] = field(factory=dict)
    pending: list[dict[str, Node | None]] = field(factory=list)
    """Each is one change: what the names in it stand for from then on; None: nothing."""

    def change(self, change: dict[str, Node | None]) -> None:
        self.pending.append(change)
        _enter(self.live, change)

    def sync(self) -> None:
        for change in self.pending:
            _enter(self.durable, change)
        self.pending.clear()


Node = File | Directory


def _enter(entries: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def apply(data: bytearray, change: Write | Truncate) -> None:
    """Do to `data` what was done to the file."""
    if isinstance(change, Truncate):
        if change.size <= len(data):
            del data[change.size :]
        else:
            data += bytes(change.size - len(data))
        return
    if len(data) < change.position:
        data += bytes(change.position - len(data))
    data[change.position : change.position + len(change.data)] = change.data


class Disk:
    """A directory in the real file system, and the journal of it. `base` must be there and empty."""

    def __init__(self, base: str, top: Directory | None = None, boot: int = 1) -> None:
        self.base = base
        self.boot = boot
        self.top = top or Directory()

    def find(self, path: str) -> tuple[Directory, str, Node | None]:
        """(Directory that `path` is in, its name there, what it is if it is there.) Its directory must be there."""
        *above, name = path[len(self.base) + 1 :].split("/")
        directory = self.top
        for part in above:
            below = directory.live.get(part)
            if not isinstance(below, Directory):
                raise FileNotFoundError(path)
            directory = below
        return directory, name, directory.live.get(name)

    def directory(self, path: str) -> Directory:
        if path == self.base:
            return self.top
        node = self.find(path)[2]
        if not isinstance(node, Directory):
            raise FileNotFoundError(path)
        return node

    def power_cut(self, rng: Random, base: str, fates: Counter[str]) -> Disk:
        """One state the disk may be in after a power cut, laid out below `base` (which is empty), as another boot finds
        it. What became of each change is counted in `fates`."""
        top = _cut_directory(rng, self.top, self.base, base, fates)
        return Disk(base, top, self.boot + 1)


# -- what a power cut leaves


def _cut_directory(rng: Random, directory: Directory, old: str, new: str, fates: Counter[str]) -> Directory:
    """Lay out at `new` what may be left of `directory`, which was at `old`."""
    entries = dict(directory.durable)
    for change in _survivors(rng, directory.pending, fates, "name"):
        _enter(entries, change)
    left = Directory()
    for name, node in entries.items():
        if isinstance(node, Directory):
            os.mkdir(f"{new}/{name}")
            left.durable[name] = _cut_directory(rng, node, f"{old}/{name}", f"{new}/{name}", fates)
            continue
        data = _cut_head(rng, f"{old}/{name}") if name == HEAD else _cut_file(rng, node, fates)
        _lay_out(f"{new}/{name}", data)
        left.durable[name] = File(data)
    left.live = dict(left.durable)
    return left


def _lay_out(path: str, data: bytearray) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if data:
            os.write(fd, data)
    finally:
        os.close(fd)


def _survivors(rng: Random, changes: list[T], fates: Counter[str], what: str) -> list[T]:
    """Those changes that reached the disk, in their order."""
    if not changes:
        return []
    kind = rng.random()
    if kind < 0.25:
        kept = list(changes)
    elif kind < 0.4:
        kept = []
    elif kind < 0.6:
        kept = changes[: rng.randrange(len(changes) + 1)]
    else:
        kept = [change for change in changes if rng.random() < 0.6]
    fates[f"{what} survived"] += len(kept)
    fates[f"{what} vanished"] += len(changes) - len(kept)
    return kept


def _cut_head(rng: Random, path: str) -> bytearray:
    kind = rng.randrange(4)
    if kind == 0:
        return bytearray()
    if kind == 1:
        return bytearray(rng.randbytes(256))
    try:
        with open(path, "rb") as head:
            data = bytearray(head.read())
    except FileNotFoundError:  # its removal did not reach the disk
        return bytearray()
    if kind == 2 and data:
        at = rng.randrange(len(data))
        data[at:] = bytes(len(data) - at)
    return data


def _cut_file(rng: Random, file: File, fates: Counter[str]) -> bytearray:
    data = bytearray(file.durable)
    if not file.pending:
        return data
    size_max = len(data)
    is_orderly = rng.random() < 0.5
    changes = _survivors(rng, file.pending, fates, "write") if is_orderly else file.pending
    for index, change in enumerate(changes):
        if isinstance(change, Truncate):
            if is_orderly or rng.random() < 0.6:
                apply(data, change)
        elif not is_orderly or index == len(changes) - 1:
            damage(rng, data, change, fates)
        else:
            apply(data, change)
        size_max = max(size_max, len(data))
        if isinstance(change, Write):
            size_max = max(size_max, change.position + len(change.data))
    if rng.random() < 0.15 and size_max > len(data):
        fates["grown without data"] += 1
        data += bytes(size_max - len(data))
    return data


def damage(rng: Random, data: bytearray, write: Write, fates: Counter[str]) -> None:
    """Let `write` happen to `data`, or something between that and nothing."""
    fate = rng.choices(_FATES, _WEIGHTS)[0]
    fates[f"write {fate.__name__.strip('_')}"] += 1
    fate(rng, data, write)


def _survived(_: Random, data: bytearray, write: Write) -> None:
    apply(data, write)


def _vanished(_rng: Random, _data: bytearray, _write: Write) -> None:
    """Nothing."""


def _torn(rng: Random, data: bytearray, write: Write) -> None:
    if size := rng.randrange(len(write.data)):
        apply(data, Write(write.position, write.data[:size]))


def _torn_by_sectors(rng: Random, data: bytearray, write: Write) -> None:
    begin, end = write.position, write.position + len(write.data)
    while begin < end:
        stop = min(end, (begin // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if rng.random() < 0.5:
            apply(data, Write(begin, write.data[begin - write.position : stop - write.position]))
        begin = stop


def _zeros(_: Random, data: bytearray, write: Write) -> None:
    apply(data, Write(write.position, bytes(len(write.data))))


def _garbage(rng: Random, data: bytearray, write: Write) -> None:
    size = len(write.data)
    where = rng.randrange(size)
    broken = bytearray(write.data)
    broken[where:] = rng.randbytes(size - where)
    apply(data, Write(write.position, bytes(broken)))


def _flipped(rng: Random, data: bytearray, write: Write) -> None:
    broken = bytearray(write.data)
    broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    apply(data, Write(write.position, bytes(broken)))


def _stale(rng: Random, data: bytearray, write: Write) -> None:
    """What stands elsewhere in the file stands here too."""
    if data:
        at = rng.choice((0, rng.randrange(len(data))))
        apply(data, Write(write.position, bytes(data[at : at + len(write.data)])))


_FATES: list[Callable[[Random, bytearray, Write], None]]
_FATES = [_survived, _vanished, _torn, _torn_by_sectors, _zeros, _garbage, _flipped, _stale]
_WEIGHTS = [50, 15, 10, 6, 5, 5, 5, 4]


def remove_directory(path: str) -> None:
    """Remove what a disk was laid out in."""
    RealFiles().remove_tree(path)
