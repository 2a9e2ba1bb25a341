"""What a commit says beside progress: whether somebody was at work here, how far, and what has killed workers. Pure.

A task that kills its worker must not do so for ever, and must take nothing with it. Its deliveries are to be counted,
durably, before it is started, without paying for that with every invocation. So:

- While a worker holds a partition, what it commits there carries a `limit`: nothing at or beyond that offset has been
  started. It is moved on some thousand offsets at a time, mostly by commits that are made anyway. Who gives the
  partition up in order stores no limit, or where the suspects end of whom some are left.
- Whoever finds a limit when it takes a partition over knows that the one before died, and that what is unfinished
  below the limit, and there by now, may have been running then. These are suspects: they are handed out few at a
  time, and each is marked in the commit, with the number of its deliveries, before it starts. All else goes on as
  always.
- When a worker dies again, the marked ones are the only ones that can have done it. From the third delivery on, or the
  last one that is allowed, they run in a child process each: the one that kills it is found out, and the worker lives.
  With them, all other suspects that the worker holds run in child processes: there may be more than one that kills, and
  each death of a worker counts against all that were marked then.

The metadata of a commit is this, and then that of progress (progress.py):

    03 length limit n (offset deliveries)*n     LEB128 varints; `limit` and `offset` counted from the committed offset,
                                                `length` is of what follows it; left out if there is nothing to say
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import Factory, frozen

from taskq.worker.progress import Progress, read_varints, varints

STANDING: Final = 3

MARKS_MAX: Final = 32
"""How many suspects may run at once in a partition: their marks must fit into a commit."""

STANDING_BYTES_MAX: Final = 400
"""Limit of `Standing.encode()`: two times `MARKS_MAX` offsets near the lowest, and a few numbers."""

AHEAD: Final = 16_384
"""How far beyond what was fetched the limit is set."""

AHEAD_WHEN_IDLE: Final = 64
"""And when nothing runs: a few may come without a commit before them."""


@frozen
class Standing:
    """See the module docstring."""

    limit: int = 0
    """0: the partition was given up in order, with no suspects left."""
    marks: Mapping[int, int] = Factory(lambda: MappingProxyType({}))
    """Offset -> deliveries."""

    def encode(self, low: int) -> bytes:
        """As metadata of a commit at `low`. What is below that is left out."""
        marks = sorted((offset, count) for offset, count in self.marks.items() if offset >= low)[: 2 * MARKS_MAX]
        if not self.limit and not marks:
            return b""
        numbers = [max(0, self.limit - low) + 1 if self.limit else 0, len(marks)]
        for offset, count in marks:
            numbers += (offset - low, count)
        body = varints(numbers)
        return bytes((STANDING,)) + varints([len(body)]) + body

    @classmethod
    def decode(cls, low: int, metadata: bytes) -> tuple[Standing, bytes]:
        """Take the metadata of a commit at `low` apart: this, and that of progress. ValueError if it is none."""
        if metadata[:1] != bytes((STANDING,)):
            return cls(), metadata
        start = 2 if metadata[1:2] < b"\x80" else 3
        (length,) = read_varints(metadata[1:start])
        body = metadata[start : start + length]
        numbers = read_varints(body)
        if len(body) < length or len(numbers) < 2 or len(numbers) != 2 + 2 * numbers[1]:
            raise ValueError("a standing that is cut short")
        limit = low + numbers[0] - 1 if numbers[0] else 0
        marks = {low + offset: count for offset, count in zip(numbers[2::2], numbers[3::2], strict=True)}
        return cls(limit, MappingProxyType(marks)), metadata[start + length :]


NOBODY: Final = Standing()
"""Of a partition that was given up in order, or never held."""


def progress_of(offset: int, metadata: bytes) -> Progress:
    """What is finished, of a commit. ValueError if no worker can have made it."""
    return Progress.decode(offset, Standing.decode(offset, metadata)[1])
