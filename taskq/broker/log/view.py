"""A partition as it stands, looked at from outside: without a lock, without writing, whether or not others append."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from taskq.broker.log import checkpoint, names
from taskq.broker.log.checkpoint import Checkpoint
from taskq.broker.log.files import Files
from taskq.broker.log.head import HEAD_BYTES, MAGIC, Head, HeadState
from taskq.broker.log.recovery import segment_bases

_TRIES = 100


class HeadKind(Enum):
    """What a head says of where the log ends."""

    VALID = "valid"
    ABSENT = "absent"
    """There is none, or it was never filled: the partition has not been opened in this boot."""
    OTHER_BOOT = "of another boot"
    """The log is recovered when it is opened next."""
    UNSOUND = "not sound"


@frozen
class View:
    """Where a partition's log began and ended at one moment. What is there of it may have moved on since."""

    directory: str
    head: HeadKind
    state: HeadState | None
    """As the head has it, if it is valid: everything up to `state.position` of the last segment is there."""
    checkpoint: Checkpoint | None
    bases: tuple[int, ...]
    """Base offsets of the segments that belong to the log, listed after the head was read."""
    others: tuple[int, ...]
    """Of those that don't: retention is about to remove them, or they were begun after the head was read."""

    @property
    def start(self) -> int:
        """The first offset of the log, as far as that is known."""
        if self.state is not None:
            return self.state.start_offset
        known = self.checkpoint.state.start_offset if self.checkpoint else 0
        return max(known, self.bases[0]) if self.bases else known

    def limit(self, base: int, size: int) -> int:
        """The byte at which segment `base`, a file of `size` bytes, ends as far as readers are concerned."""
        if self.state is None or base != self.state.segment_base:
            return size
        return self.state.position

    def next_base(self, base: int) -> int | None:
        """The offset at which the log goes on after segment `base`; None if that is not known."""
        later = [other for other in self.bases if other > base]
        if later:
            return later[0]
        return None if self.state is None else self.state.next_offset

    def goes_on_at(self, offset: int) -> bool:
        """Whether a segment begins at `offset`, or the log ends there: so one that ends there ends where it should."""
        return offset in self.bases or (self.state is not None and self.state.next_offset == offset)


def take(files: Files, directory: str) -> View:
    """Look at the partition in `directory`. Raises FileNotFoundError if it is gone."""
    kind, state = read_head(files, directory)
    known = checkpoint.read(files, directory)
    listed = segment_bases(files, directory)
    bases = [base for base in listed if state is None or base <= state.segment_base]
    start = state.start_offset if state else known.state.start_offset if known else 0
    while len(bases) > 1 and bases[1] <= start:
        bases.pop(0)
    others = tuple(base for base in listed if base not in bases)
    return View(directory, kind, state, known, tuple(bases), others)


def read_head(files: Files, directory: str) -> tuple[HeadKind, HeadState | None]:
    """What the head says, without mapping it."""
    try:
        fd = files.open(names.head(directory), write=False)
    except FileNotFoundError:
        return HeadKind.ABSENT, None
    try:
        for _ in range(_TRIES):  # what is read while somebody appends may be half of one and half of the other
            raw = files.pread(fd, HEAD_BYTES, 0)
            if len(raw) < HEAD_BYTES:
                return HeadKind.ABSENT, None
            head = Head(memoryview(raw).cast("q"), files.boot_id())
            if head.is_valid():
                return HeadKind.VALID, head.state()
            if not head.words[0]:
                return HeadKind.ABSENT, None
            if head.words[0] == MAGIC and (head.words[1], head.words[2]) != files.boot_id():
                return HeadKind.OTHER_BOOT, None
        return HeadKind.UNSOUND, None
    finally:
        files.close(fd)
