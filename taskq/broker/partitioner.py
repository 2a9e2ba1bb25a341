"""Which partition a record goes to: by its key as Kafka's clients choose it, without a key spread in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import cycle
from random import randrange
from struct import iter_unpack
from typing import Final

from taskq.errors import ConfigError

BATCH_RECORDS: Final = 16
"""How many records without a key go to one partition before the next has its turn. One at a time would wake every
consumer for a short burst and touch every file; many would leave partitions, and so workers, idle."""

_KEY_BYTES_CACHED: Final = 256
"""Longer keys are hashed each time: a cache of them would hold on to megabytes."""

_MASK: Final = 0xFFFFFFFF
_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C


def murmur2(key: bytes) -> int:
    """MurmurHash2 with Kafka's seed, as the signed 32-bit number that Java has."""
    length = len(key)
    whole = length & ~3
    state = _SEED ^ length
    for (word,) in iter_unpack("<I", key[:whole]):
        mixed = word * _MULTIPLIER & _MASK
        mixed = (mixed ^ mixed >> 24) * _MULTIPLIER & _MASK
        state = state * _MULTIPLIER & _MASK ^ mixed
    if whole < length:
        state = (state ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _MASK
    state = (state ^ state >> 13) * _MULTIPLIER & _MASK
    state ^= state >> 15
    return state - (1 << 32) if state >> 31 else state


def partition_for_key(key: bytes, partitions: int) -> int:
    """The partition of `partitions` that Kafka's default partitioner chooses for `key`."""
    if len(key) > _KEY_BYTES_CACHED:
        return _partition_for_key(key, partitions)
    return _partition_for_key_cached(key, partitions)


def _partition_for_key(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions  # Kafka's toPositive cuts the sign off; it is not abs()


_partition_for_key_cached = lru_cache(maxsize=16384)(_partition_for_key)


class Spread:
    """Partitions for records of one topic that have no key.

    It begins at a random partition, so that many short-lived processes don't all fill the first. Threads may share it.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._following = randrange(partitions)
        turns = range(self._following, self._following + partitions)
        self._turns = cycle([turn % partitions for turn in turns for _ in range(BATCH_RECORDS)])

    def next(self) -> int:
        """The partition of the next single record."""
        return next(self._turns)

    def split(self, count: int) -> Iterator[tuple[int, range]]:
        """Divide `count` records over all partitions: (partition, indexes of its share), shares equal within one.

        Each share is contiguous, so neighbours stay together and in order. The larger shares go to other partitions
        from call to call.
        """
        start = self._following
        share, larger = divmod(count, self._partitions)
        self._following = (start + larger) % self._partitions
        position = 0
        for turn in range(self._partitions if share else larger):
            stop = position + share + (turn < larger)
            yield (start + turn) % self._partitions, range(position, stop)
            position = stop


def key_required(topic: str) -> ConfigError:
    """What to say of a record without a key for a compacted topic."""
    return ConfigError(
        f"topic {topic!r} is compacted, which keeps the last record of each key: a record needs a key there. "
        'Give it one, or set cleanup_policy to "delete"'
    )


class KeyRequired(Spread):
    """What a compacted topic has in the place of a spread: a record without a key would stay for ever.

    `refused` is called when there is one: the topic may be another one by now.
    """

    def __init__(self, topic: str, partitions: int, refused: Callable[[str], None]) -> None:
        super().__init__(partitions)
        self._topic = topic
        self._tell = refused

    def next(self) -> int:
        raise self._refused()

    def split(self, count: int) -> Iterator[tuple[int, range]]:
        if count:
            raise self._refused()
        return iter(())

    def _refused(self) -> ConfigError:
        self._tell(self._topic)
        return key_required(self._topic)


def spread_for(
    topic: str, partitions: int, cleanup_policy: str, refused: Callable[[str], None] = lambda topic: None
) -> Spread:
    """How records without a key are spread in a topic that is kept like this."""
    return KeyRequired(topic, partitions, refused) if cleanup_policy == "compact" else Spread(partitions)
