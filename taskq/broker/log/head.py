"""A partition's head: where its log ends, in memory that all processes share.

The head is a small file, mapped by every process that uses the partition. Its descriptor carries the append lock. It
survives the death of any process (the page belongs to the file), but says nothing after a reboot, when the log's own
tail may be gone: it carries the boot's id, and a head of another boot is rebuilt by scanning the log.

    word 0       magic and version
    words 1-2    id of the boot that it is valid for
    word 3       generation: counts appends; its parity says which of the two slots is valid
    word 4       intent: generation + 1 while an append is under way, else equal to the generation
    word 5       waiting: a bit for each consumer that sleeps until the next append (broker/wakeups.py numbers them)
    word 6       notice: not 0 when whoever appends next must look up why (`Notice`)
    word 7       synced: everything below this offset is on stable storage
    words 8-15   slot 0: segment base offset, position in it, next offset, position of the last index entry, size of the
                 index, start offset, the generation, and the XOR of these seven
    words 16-23  slot 1
    words 24-27  what the last segment's time index needs: the largest timestamp in the segment, the last offset of its
                 batch, size of the time index, timestamp of its last entry
    word 28      settings: how often the topic's settings were changed in this boot
    word 29      named: 1 if the last segment's name is known to be on stable storage
    word 30      recoveries: how often the log was recovered or repaired, after which what had been read may be gone

Why two slots: a writer may die between any two stores. It fills the slot that is not valid and then stores the
generation, one aligned 64-bit store, which is the moment the append takes place: a reader sees all of it or
nothing. A writer that finds `intent` ahead of the generation knows that the one before died in between and left
bytes past the position, and cuts them.

Who may do what: the slots, the generation, the intent, the notice, the settings and the words of the time index are
written only under the append lock (`notice` also by whoever's fsync failed); `waiting` is set and cleared only under
it, so an append and a consumer going to sleep cannot miss each other; `synced` and `named` are written under the sync
lock (durability.py) or the append lock; anything may be read at any time. A reader without the lock may see a slot half
rewritten, two appends later; the XOR word shows it (also on processors that reorder stores), and it looks again. The
words of the time index are no part of a slot: a writer that dies between two of them leaves an index that is a little
off, and an index is never trusted.
"""

from __future__ import annotations

from enum import IntFlag
from struct import Struct
from typing import NamedTuple

from attrs import frozen

MAGIC = 0x7461736B71_0002  # "taskq", version 2
HEAD_BYTES = 256

GENERATION, INTENT, WAITING, NOTICE, SYNCED = 3, 4, 5, 6, 7
TIMESTAMP_MAX, TIMESTAMP_MAX_OFFSET, TIMEINDEX_SIZE, TIMEINDEX_LAST = 24, 25, 26, 27
SETTINGS, NAMED, RECOVERIES = 28, 29, 30
_SLOT_WORDS = 8
_SLOT = Struct("=8q")
_fill_slot = _SLOT.pack_into
_SLOT_POSITIONS = (64, 128)  # bytes, by the generation's parity
_NEXT_OFFSET = 10  # word of slot 0


class Notice(IntFlag):
    """Why the next append must look before it writes. Set with `Head.notify`, which makes every writer look."""

    DELETED = 1
    """The topic is gone, though files of it may still be open here or there."""
    FAILED = 2
    """An fsync failed: nothing may be written until somebody reopens the partition, which repairs it."""


class Times(NamedTuple):
    """What of the last segment's time index is not in the slots, as words 24 to 27 have it. -1: none yet."""

    timestamp_max_ms: int = -1
    timestamp_max_offset: int = -1
    """Last offset of the batch of that timestamp."""
    index_size: int = 0
    indexed_ms: int = -1
    """Timestamp of the last entry."""


@frozen
class HeadState:
    """The end of a partition's log: all that an append must know."""

    segment_base: int
    position: int
    next_offset: int
    index_position: int
    """Byte in the log of the batch that the last index entry names; -1 if there is none."""
    index_size: int
    start_offset: int


class Steady(NamedTuple):
    """What of a HeadState stays the same for many appends, and the XOR of it."""

    segment_base: int
    index_position: int
    index_size: int
    start_offset: int
    xor: int

    @classmethod
    def of(cls, state: HeadState) -> Steady:
        base, index_position, index_size = state.segment_base, state.index_position, state.index_size
        xor = base ^ index_position ^ index_size ^ state.start_offset
        return cls(base, index_position, index_size, state.start_offset, xor)

    def with_index(self, position: int, size: int) -> Steady:
        xor = self.xor ^ self.index_position ^ self.index_size ^ position ^ size
        return Steady(self.segment_base, position, size, self.start_offset, xor)


class Head:
    """The mapped words. Holds no state of its own, so it can never be out of date."""

    __slots__ = ("_boot", "_bytes", "words")

    def __init__(self, words: memoryview, boot: tuple[int, int]) -> None:
        self.words = words
        self._bytes = words.cast("B")
        self._boot = boot

    def is_valid(self) -> bool:
        """Whether it was made in this boot and its valid slot is whole. Call under the append lock."""
        words = self.words
        if words[0] != MAGIC or (words[1], words[2]) != self._boot:
            return False
        return self._slot(words[GENERATION]) is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether a writer died in the middle of an append. Call under the append lock."""
        return bool(self.words[INTENT] != self.words[GENERATION])

    def begin(self) -> None:
        """An append is about to write."""
        self.words[INTENT] = self.words[GENERATION] + 1

    def abandon(self) -> None:
        """The append wrote nothing, or what it wrote has been cut."""
        self.words[INTENT] = self.words[GENERATION]

    def reset(self, state: HeadState, times: Times, synced: int) -> int:
        """Make it valid for this boot, ending at `state`; return the generation. Call under the append lock."""
        words = self.words
        words[0] = 0
        words[GENERATION] = words[INTENT] = words[WAITING] = words[NOTICE] = words[SETTINGS] = words[NAMED] = 0
        words[1], words[2] = self._boot
        words[SYNCED] = synced
        self.set_times(times)
        self.begin()
        generation = self.publish(state.position, state.next_offset, Steady.of(state))
        words[0] = MAGIC
        return generation

    def publish(self, position: int, next_offset: int, steady: Steady) -> int:
        """Make a new end visible; return the generation. Call between `begin` and the unlocking."""
        words = self.words
        generation: int = words[GENERATION] + 1
        base, index_position, index_size, start, xor = steady
        check = xor ^ position ^ next_offset ^ generation
        at = _SLOT_POSITIONS[generation & 1]
        # fmt: off
        _fill_slot(self._bytes, at, base, position, next_offset, index_position, index_size, start, generation, check)
        # fmt: on
        words[GENERATION] = generation
        return generation

    def set_times(self, times: Times) -> None:
        """Begin a segment's time index anew. Call under the append lock."""
        words = self.words
        words[TIMESTAMP_MAX], words[TIMESTAMP_MAX_OFFSET], words[TIMEINDEX_SIZE], words[TIMEINDEX_LAST] = times

    def times(self) -> Times:
        words = self.words
        return Times(words[TIMESTAMP_MAX], words[TIMESTAMP_MAX_OFFSET], words[TIMEINDEX_SIZE], words[TIMEINDEX_LAST])

    def notify(self, notice: Notice) -> None:
        """Set `notice`, and make every writer look before its next append. Call under the append lock."""
        self.words[NOTICE] |= notice
        self.republish(self.state())

    def republish(self, state: HeadState) -> int:
        """Publish `state` as a new generation, so that whoever has the old one cached reads it again.

        What a writer left that died while appending is still to be cut after it.
        """
        was_interrupted = self.is_interrupted
        self.begin()
        generation = self.publish(state.position, state.next_offset, Steady.of(state))
        if was_interrupted:
            self.begin()
        return generation

    def state(self) -> HeadState:
        """The end of the log as of now. Safe without the lock."""
        while True:
            slot = self._slot(self.words[GENERATION])
            if slot is not None:
                return slot

    def next_offset(self) -> int:
        """`state().next_offset`, for those who ask thousands of times a second.

        Where stores are reordered this may be the end as of one append earlier: true then, and never too far.
        """
        words = self.words
        while True:
            generation = words[GENERATION]
            found: int = words[_NEXT_OFFSET if not generation & 1 else _NEXT_OFFSET + _SLOT_WORDS]
            # The slot of an even generation is rewritten only after the next generation is published.
            if words[GENERATION] == generation:
                return found

    def _slot(self, generation: int) -> HeadState | None:
        *state, slot_generation, check = _SLOT.unpack_from(self._bytes, _SLOT_POSITIONS[generation & 1])
        xor = slot_generation
        for word in state:
            xor ^= word
        return HeadState(*state) if xor == check and slot_generation == generation else None

    def set_waiting(self, mask: int) -> None:
        """Ask the next append to wake this consumer. Call under the append lock."""
        self.words[WAITING] |= mask

    def is_waiting(self, mask: int) -> bool:
        return bool(self.words[WAITING] & mask)
