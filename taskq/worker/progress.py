"""What a group has finished in one partition, in few bytes and few nanoseconds.

A log offers one number per group and partition: everything below the committed offset is finished. That is not enough
here. A worker runs many invocations of a partition at once, and they end in any order: with a single number either
nothing may be committed past the slowest (a crash then repeats everything that ended above it, a restart of a worker
with one invocation of an hour repeats an hour's work), or the worker commits past it, and a crash loses it. So the
commit carries two things: `low`, the lowest unfinished offset, and, as the commit's metadata, what is already finished
above it. A restart or a rebalance then repeats only what had not been committed, and loses nothing.

What is kept in memory are the *holes*: the set of unfinished offsets between `low` and `high`, the end of the highest
finished one.

    offset    100   101   102   103   104   105   106   107
               #     #     .     #     #     .     #    (not finished, and nothing above it is)
                         low=102                   high=107     holes={102, 105}

Why holes, and not what is finished:

- Holes are at most what is in flight, whatever happens. One invocation that takes an hour, with ten million finished
  above it, is one hole. A set or bitmap of the finished would grow for that whole hour.
- Order does not matter. Adding the new offsets' range and taking away what ended are two bulk set operations that run
  in C, about the same for every order; duplicates and offsets finished long ago fall out by themselves.
- It is hard to get wrong: an offset is finished when it is below `high` and not a hole.

Rejected: sorted runs spliced by bisection (5 times slower when many invocations end far out of order, because every
batch touches most runs); a bitmap with a byte per offset (memory as above, and a Python-level loop to mark: slower
than the set); an integer as a bitmap (each update copies it).

What is stored is shorter of two encodings of the same state, told apart by the first byte:

    (empty)                        nothing is finished above the offset
    01 gap run gap run ...         alternating lengths from `low` on, unfinished then finished, as LEB128 varints
    02 bits                        bit i, counted from the lowest bit of the first byte, is offset `low + 1 + i`

Runs are short when a few slow invocations lag behind (the rule: one or two bytes each, whatever is above them), bits
when many are unfinished in a small window. Neither is bounded: at worst alternate offsets are finished over a wide
range. A broker limits commit metadata, and what doesn't fit must never be cut, because what was cut would run again. So
`fits` tells the poller in time, and the poller stops handing out work in this partition until it fits again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

ENCODED_BYTES_MAX: Final = 2600
"""Limit of `Progress.encode()`: with a standing (standing.py) and as base64 within Kafka's 4,096 bytes of metadata."""

HOLES_MAX: Final = 1 << 20
"""Limit of unfinished offsets below a finished one: far more than a worker has in flight, and 64 MB at most. Going over
it means that a caller or a commit is wrong, and saying so beats filling the memory."""

OFFSET_MAX: Final = (1 << 63) - 1

_RUNS: Final = 1
_BITS: Final = 2


class Progress:
    """What is finished in one partition. Not thread-safe: the poller owns it.

    `low` is the lowest unfinished offset, what a commit stores as its offset; `high` is one past the highest finished.
    """

    __slots__ = ("_encoded", "_holes", "_runs", "high", "low")

    def __init__(self, start: int) -> None:
        self.low = start
        self.high = start
        self._holes: set[int] = set()  # unfinished offsets in [low, high); has `low` unless low == high
        self._runs: bytes | None = None  # these two of the state as it is; None: not computed since the last change
        self._encoded: bytes | None = None

    def __repr__(self) -> str:
        return f"Progress(low={self.low}, high={self.high}, finished_above={self.finished_above})"

    @property
    def finished_above(self) -> int:
        """How many offsets above `low` are finished."""
        return self.high - self.low - len(self._holes)

    def is_finished(self, offset: int) -> bool:
        return offset < self.low or (offset < self.high and offset not in self._holes)

    def finish(self, offsets: list[int]) -> None:
        """These are finished, in any order. Those that were already are ignored.

        Raises ValueError, and changes nothing, if they reach over HOLES_MAX above all that is finished.
        """
        if not offsets:
            return
        # When they ended almost in order, sorting is the faster way. The one in the middle tells well enough whether
        # they did: a wrong guess costs time only.
        middle = len(offsets) // 2
        displaced = abs(offsets[middle] - self.high - middle)
        if displaced * 16 > len(offsets) or not self._finish_dense(offsets):
            self._raise_high(max(offsets) + 1)
            self._holes.difference_update(offsets)
        self._raise_low(len(offsets))

    def finish_range(self, start: int, stop: int) -> None:
        """All of `range(start, stop)` is finished. Raises as `finish` does."""
        if stop <= start or stop <= self.low:
            return
        if start > self.high:
            self._raise_high(start)
        if stop - start < len(self._holes):
            self._holes.difference_update(range(start, stop))
        else:
            self._holes = {hole for hole in self._holes if not start <= hole < stop}
        self.high = max(self.high, stop)
        self._raise_low(stop - start)

    def finish_gaps(self, due: int, offsets: Iterable[int]) -> None:
        """What is missing from `due` on, before and among these ascending offsets, is finished: retention, compaction
        or a repair has left nothing there."""
        for offset in offsets:
            self.finish_range(due, offset)
            due = offset + 1

    def unfinished(self, stop: int) -> Iterator[range]:
        """The unfinished offsets below `stop`, as ranges in order that don't touch."""
        for gap in _ranges(self._holes):
            if gap.start >= stop:
                return
            yield range(gap.start, min(gap.stop, stop))
        if stop > self.high:
            yield range(self.high, stop)

    def encode(self) -> bytes:
        """What is finished above `low`, for the commit's metadata. Computed anew only after a change."""
        if self._encoded is None:
            runs, bits_length = self._encode_runs(), 1 + _bits_length(self.high - self.low)
            self._encoded = runs if len(runs) <= bits_length else self._encode_bits(bits_length)
        return self._encoded

    def fits(self, limit: int = ENCODED_BYTES_MAX, running: int = 0, upto: int = 0) -> bool:
        """Whether `encode()` stays within `limit` bytes, even after any `running` more offsets below `upto` finish.

        Mostly answered from a few numbers; encodes only when near the limit.
        """
        span = max(self.high, upto) - self.low
        if 1 + _bits_length(span) <= limit:  # as bits it fits whatever is finished
            return True
        length = _varint_length(span)
        spare = limit - running * (1 + length)  # each may split a gap: a run of one, and another gap
        pairs = min(len(self._holes), self.finished_above)
        runs_length_max = 1 + pairs * (1 + length) + len(self._holes) // 128  # a gap of 128 takes a second byte
        return runs_length_max <= spare or (spare > 0 and len(self._encode_runs()) <= spare)

    @classmethod
    def decode(cls, offset: int, metadata: bytes) -> Progress:
        """The state that was committed as `offset` and `metadata`. ValueError if no `encode` can have made it."""
        if not 0 <= offset <= OFFSET_MAX:
            raise ValueError(f"a committed offset can't be {offset}")
        progress = cls(offset)
        if metadata:
            kind, body = metadata[0], metadata[1:]
            if kind == _RUNS:
                lengths = read_varints(body)
            elif kind == _BITS:
                lengths = _read_bits(body)
            else:
                raise ValueError(f"progress of unknown kind {kind}")
            progress._load(lengths)
        return progress

    def _finish_dense(self, offsets: list[int]) -> bool:
        """`finish` for offsets that leave few holes above `high`, found by bisection. False: not of that kind."""
        ended = sorted(set(offsets))  # a set of numbers that lie close together comes out nearly sorted
        high = self.high
        first = 0 if ended[0] >= high else bisect_left(ended, high)
        count = len(ended) - first
        missing = ended[-1] + 1 - high - count
        if count == 0 or missing * 32 > count or missing + len(self._holes) > HOLES_MAX:
            return False
        if first:
            self._holes.difference_update(ended[:first])
        if missing:
            for gap in _gaps(ended, first, high):
                self._holes.update(gap)
        self.high = ended[-1] + 1
        return True

    def _raise_high(self, high: int) -> None:
        if high > self.high:
            if len(self._holes) + high - self.high > HOLES_MAX:
                raise ValueError(f"{self}: {high - 1} can't be finished, {HOLES_MAX} unfinished is the limit")
            self._holes.update(range(self.high, high))
            self.high = high

    def _raise_low(self, changed: int) -> None:
        """After `changed` offsets finished: find the lowest hole anew, the cheaper of two ways."""
        self._runs = self._encoded = None
        holes = self._holes
        if not holes:
            self.low = self.high
        elif self.low not in holes:
            if len(holes) <= changed:
                self.low = min(holes)
            else:
                self.low = next(filter(holes.__contains__, range(self.low, self.high)))

    def _encode_runs(self) -> bytes:
        if self._runs is None:
            lengths: list[int] = []  # a gap comes first, a run last
            for gap, following in pairwise([*_ranges(self._holes), range(self.high, self.high)]):
                lengths += (len(gap), following.start - gap.stop)
            self._runs = bytes((_RUNS,)) + varints(lengths) if lengths else b""
        return self._runs

    def _encode_bits(self, length: int) -> bytes:
        flags = bytearray(b"1") * (self.high - self.low - 1)  # from high to low: the number's digits
        top = self.high - 1
        for hole in self._holes:
            if hole != self.low:
                flags[top - hole] = 0x30
        return bytes((_BITS,)) + int(flags, 2).to_bytes(length - 1, "little")

    def _load(self, lengths: list[int]) -> None:
        if not lengths or len(lengths) % 2 or 0 in lengths:
            raise ValueError("progress that is not pairs of an unfinished and a finished length")
        if sum(lengths[::2]) > HOLES_MAX:
            raise ValueError(f"progress with over {HOLES_MAX} unfinished")
        if self.low + sum(lengths) > OFFSET_MAX:
            raise ValueError("progress beyond the last possible offset")
        position = self.low
        for gap, run in zip(lengths[::2], lengths[1::2], strict=True):
            self._holes.update(range(position, position + gap))
            position += gap + run
        self.high = position


def count_finished(encoded: bytes) -> int:
    """How many offsets above the committed one are finished, without building what they are. ValueError as `decode`."""
    if not encoded:
        return 0
    kind, body = encoded[0], encoded[1:]
    if kind == _RUNS:
        return sum(read_varints(body)[1::2])
    if kind == _BITS:
        return int.from_bytes(body, "little").bit_count()
    raise ValueError(f"progress of unknown kind {kind}")


def _ranges(numbers: set[int]) -> Iterator[range]:
    """The numbers as ranges in order that don't touch."""
    if not numbers:
        return
    ordered = sorted(numbers)
    start = ordered[0]
    for last, following in [pair for pair in pairwise(ordered) if pair[1] - pair[0] != 1]:
        yield range(start, last + 1)
        start = following
    yield range(start, ordered[-1] + 1)


def _gaps(ordered: list[int], index: int, expected: int) -> Iterator[range]:
    """What is missing from `expected` on in `ordered[index:]`, which has no duplicates and nothing below `expected`.

    Gallops over each stretch without gaps, so few gaps in many numbers cost little.
    """
    last = len(ordered) - 1
    while True:
        if ordered[index] != expected:
            yield range(expected, ordered[index])
        shift = ordered[index] - index  # of a number whose stretch this is: number - its index
        if ordered[last] - last == shift:
            return
        step = 1
        while index + step < last and ordered[index + step] - index - step == shift:
            index += step
            step *= 2
        index = bisect_left(range(last), True, index, min(index + step, last), key=lambda i: ordered[i] - i != shift)
        expected = ordered[index - 1] + 1


def _bits_length(span: int) -> int:
    """Bytes for what is finished in `span` offsets, the first of which is not."""
    return (span + 6) // 8


def _varint_length(number: int) -> int:
    return (number.bit_length() + 6) // 7 or 1


def varints(numbers: list[int]) -> bytes:
    """Numbers as LEB128."""
    encoded = bytearray()
    for number in numbers:
        rest = number
        while rest > 0x7F:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)


def read_varints(encoded: bytes) -> list[int]:
    """What `varints` made. ValueError if it is cut short."""
    numbers = []
    number = shift = 0
    for byte in encoded:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 63:
                raise ValueError("progress with a length over 64 bits")
        else:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError("progress that ends within a length")
    return numbers


def _read_bits(encoded: bytes) -> list[int]:
    """Alternating lengths, beginning with the gap that `low` itself is."""
    digits = bin(int.from_bytes(encoded, "little"))[:1:-1]  # lowest first
    if not encoded or not encoded[-1]:
        raise ValueError("progress whose bits don't end with a finished one")
    lengths = []
    start, wanted = -1, "1"
    while (end := digits.find(wanted, max(start, 0))) >= 0:
        lengths.append(end - start)
        start, wanted = end, "0" if wanted == "1" else "1"
    lengths.append(len(digits) - start)
    return lengths
