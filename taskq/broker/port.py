"""The broker port: what taskq asks of whatever stores its records. Bytes and offsets; never a task.

Three engines stand behind it (`memory`, `embedded`, `kafka`) and one conformance suite holds them to it
(`tests/conformance`). Every method is synchronous and thread-safe unless it says otherwise, may block for I/O, and
raises a `taskq.errors.BrokerError`; once the broker is closed, `BrokerUnavailable`.

A consumer's life, as its owner sees it:

    poll() -> Polled.assigned   these partitions are now ours; fetching starts at the committed offset
           -> Polled.fetched    records, in offset order within a partition
           -> Polled.revoking   another member should have these: stop starting work, let what runs end, commit,
                                then release(); or keep() to go on when what runs takes too long
           -> Polled.lost       gone already (the topic was deleted): drop all work on them
           -> Polled.errors     this partition can't be read further (damage, or OffsetOutOfRange); it stays ours and
                                stands still
           -> Polled.skipped    offsets passed over, since retention had removed them before we read them
    commit()                    progress, any time
    close()                     leaves the group; partitions are free at once

A partition that is revoking brings no records until it is kept. It may become due to its holder again meanwhile; to
release it is right all the same. `pause`, `resume`, `release` and `keep` take partitions that are held, else KeyError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from attrs import field, frozen

from taskq.errors import BrokerError
from taskq.topics import TopicSettings

MESSAGE_BYTES_MAX = 1024 * 1024
"""Limit of one record's key, value and headers together, in bytes. Kafka's default `message.max.bytes` is the same."""

COMMIT_METADATA_BYTES_MAX = 3000
"""Limit of the progress kept with a committed offset, in bytes. As base64 it is less than what Kafka's default of
`offset.metadata.max.bytes`, 4,096, lets through."""

PARTITIONS_DEFAULT = 8

OWN_HEADERS = "taskq-"
"""How the names of headers begin that taskq itself adds. They don't count towards MESSAGE_BYTES_MAX."""

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Record(NamedTuple):
    """A record as read. A named tuple because a worker makes hundreds of thousands of them a second."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Message(NamedTuple):
    """A record to be sent: the broker gives it an offset and a timestamp."""

    value: bytes | None
    """None is a tombstone: the key's value is gone, and compaction removes what it had."""
    key: bytes | None = None
    headers: Headers = ()


@frozen
class Committed:
    """A group's progress in a partition: everything below `offset` is finished; `metadata` tells what above it is."""

    offset: int
    metadata: bytes = b""


class Fetched(NamedTuple):
    """Records of one partition, in offset order."""

    tp: TopicPartition
    records: list[Record]


@frozen
class Polled:
    """What one `Consumer.poll` brings. See the module docstring for what to do with each part."""

    fetched: list[Fetched] = field(factory=list)
    assigned: Mapping[TopicPartition, Committed] = field(factory=dict)
    revoking: frozenset[TopicPartition] = frozenset()
    lost: frozenset[TopicPartition] = frozenset()
    errors: Mapping[TopicPartition, BrokerError] = field(factory=dict)
    skipped: Mapping[TopicPartition, int] = field(factory=dict)
    """How many offsets. What was fetched with it, if anything, comes after them."""


@frozen
class PartitionBounds:
    """The offsets a partition holds: `start` is the first, `end` the one the next record will get."""

    start: int
    end: int


@frozen
class TopicDescription:
    name: str
    partitions: tuple[PartitionBounds, ...]
    size_bytes: tuple[int, ...]
    """Bytes on disk, by partition. Empty where the broker does not tell."""
    settings: TopicSettings


@frozen
class GroupDescription:
    name: str
    members: Mapping[str, tuple[str, ...]]
    """Live members: id -> topics subscribed."""
    owners: Mapping[TopicPartition, str]
    """Partition -> id of the member that holds it. A partition nobody holds is absent."""
    committed: Mapping[TopicPartition, Committed]


@frozen
class Lost:
    """A part of a partition's log that is damaged: nothing of it can be read."""

    file: str
    position: int
    """Byte in the file at which it begins."""
    size_bytes: int
    offset: int
    """The first offset that is lost."""
    next_offset: int | None
    """The first offset after it that can be read; None if that is not known. At most so many records are lost as there
    are offsets in between."""
    reason: str

    def __str__(self) -> str:
        what = f"offsets {self.offset} to {'?' if self.next_offset is None else self.next_offset - 1} are lost"
        if self.next_offset == self.offset:
            what = "no offsets are lost"
        return f"{self.file}: damaged at byte {self.position}: {self.reason}; {self.size_bytes} bytes, {what}"


class Producer(Protocol):
    def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
    ) -> tuple[int, int]:
        """Append one record; return its (partition, offset) once the broker has it, as durably as configured.

        The partition is murmur2(key) modulo the number of partitions, as Kafka's own clients choose it; without a key,
        records are spread in batches. The topic is created on first use. With `wait=False` a call that would have
        to wait for a lock or a disk, or open a partition first, raises `WouldBlock` instead and appends nothing.
        """
        ...

    def send_many(self, topic: str, messages: Sequence[Message]) -> None:
        """Append many records in few writes. Messages of one partition keep their order.

        Every message is checked for size before the first is appended. An error of storage may leave some appended. The
        topic is created even if there are none.
        """
        ...

    def close(self) -> None:
        """Make everything durable that is not yet, and release files and threads. Idempotent."""
        ...


class Consumer(Protocol):
    """One member of a group. `wakeup` may be called from any thread; everything else by its one owner."""

    @property
    def member_id(self) -> str: ...

    def poll(self, timeout: float, records_max: int = 4096) -> Polled:
        """Wait up to `timeout` seconds for something to report; return as soon as there is anything, or empty.

        `records_max` is a soft bound: a batch is never split, so up to a batch more may come.
        """
        ...

    def wakeup(self) -> None:
        """Make the current or next `poll` return at once. Thread-safe; many calls may count as one."""
        ...

    def pause(self, tps: Sequence[TopicPartition]) -> None:
        """Stop fetching these; they stay ours. What was fetched is not returned again."""
        ...

    def resume(self, tps: Sequence[TopicPartition]) -> None: ...

    def commit(self, progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        """Store progress of partitions we hold. Durable against process death when it returns.

        Returns those of which nothing was stored, since they are not ours any more; `poll` has told that, or will.
        Raises ConfigError if metadata is over COMMIT_METADATA_BYTES_MAX, BrokerUnavailable if it can't be stored now:
        some of it may be then.
        """
        ...

    def release(self, tps: Sequence[TopicPartition]) -> None:
        """Give up partitions that were `revoking`. Commit first."""
        ...

    def keep(self, tps: Sequence[TopicPartition]) -> None:
        """Go on with partitions that were `revoking`; the group asks again later."""
        ...

    def leave(self) -> None:
        """Begin to leave the group: nothing more is assigned, and all that is held is revoked by the next `poll`."""
        ...

    def close(self) -> None:
        """Leave the group and free every partition held. Does not commit. Idempotent."""
        ...


class Reader(Protocol):
    """Looks at partitions without belonging to a group.

    Raises TopicNotFound, or ConfigError for a name that no topic can have.
    """

    def bounds(self, tp: TopicPartition) -> PartitionBounds: ...

    def read(
        self,
        tp: TopicPartition,
        offset: int,
        bytes_max: int = 1024 * 1024,
        *,
        lost: Callable[[Lost], object] | None = None,
    ) -> list[Record]:
        """Records from `offset` on, at least one if there is one, whole batches up to about `bytes_max` bytes.

        Below the start it reads from the start. At or past the end: an empty list. At damage it raises CorruptLog,
        every time; with `lost` it passes over what is damaged instead, and tells `lost` what that is.
        """
        ...

    def offset_for(self, tp: TopicPartition, timestamp_ms: int) -> int:
        """The earliest offset whose record's timestamp is `timestamp_ms` or later; the end if there is none."""
        ...

    def close(self) -> None: ...


class Follower(Protocol):
    """Reads one partition from its start, and then what comes, as it comes. One thread's, but for `close`."""

    def read(self, timeout: float) -> list[Record]:
        """The next records, in order; an empty list when all has been read that was there before.

        It may wait for the next one then, up to `timeout` seconds. While there is no such topic, there is nothing to
        read. It begins again at the start once it sees that the topic was made anew, and may if that only seemed so:
        the same records may come twice. Raises BrokerUnavailable if nobody could be asked yet.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Admin(Protocol):
    def topics(self) -> list[str]:
        """Names of all topics, sorted."""
        ...

    def partitions(self, topic: str) -> int: ...

    def create_topic(
        self, topic: str, partitions: int = PARTITIONS_DEFAULT, *, replication: int = -1, **settings: int | str
    ) -> None:
        """Create a topic, whole or not at all. `settings` are those of `TopicSettings`, as `parse_settings` takes them.

        `replication` is how many brokers of a cluster keep each partition; -1: as they are configured. Where there is
        one broker, it keeps all.

        Raises ConfigError if it exists, or the name, the number or a setting is not allowed.
        """
        ...

    def alter_topic(self, topic: str, partitions: int | None = None, **settings: int | str) -> None:
        """Give a topic more partitions, or other settings; those not named stay. All of it or nothing.

        Who publishes and consumes, in whatever process, notices within about a second. What has a key may be in another
        partition from then on than what came before it. Raises ConfigError if there would be fewer partitions.
        """
        ...

    def delete_topic(self, topic: str) -> None:
        """Remove a topic, all that is in it, and the progress groups made in it.

        Who publishes to it meanwhile or later creates it anew. Members that read it get Polled.lost.
        """
        ...

    def describe_topic(self, topic: str) -> TopicDescription: ...

    def groups(self) -> list[str]:
        """Names of groups that have members or committed offsets, sorted."""
        ...

    def describe_group(self, group: str) -> GroupDescription:
        """A group nobody has heard of has no members and has committed nothing."""
        ...

    def close(self) -> None: ...


class Broker(Protocol):
    """An opened broker. `url` is absolute. The factory methods may be called many times; `close` closes all."""

    @property
    def url(self) -> str: ...

    @property
    def is_remote(self) -> bool:
        """Whether each question costs a round trip: then don't ask with every record."""
        ...

    @property
    def unsynced_s(self) -> float:
        """How old the oldest record is that this process has published and that may not be on stable storage yet.

        0 if there is none, and where nobody syncs (durability "os", memory).
        """
        ...

    def producer(self) -> Producer: ...

    def consumer(self, group: str, topics: Sequence[str], *, offset_reset: str = "earliest") -> Consumer:
        """Join `group`. Topics that don't exist are created. A new group starts at each partition's start.

        Where the group's next records have been removed, it goes on at the start ("earliest"), or, with `offset_reset`
        "error", not at all: the partition is in Polled.errors.
        """
        ...

    def reader(self) -> Reader: ...

    def follower(self, tp: TopicPartition, lost: Callable[[Lost], object]) -> Follower:
        """At damage it tells `lost` what that is, and passes over it."""
        ...

    def admin(self) -> Admin: ...

    def close(self) -> None: ...


class WouldBlock(Exception):
    """`Producer.send(wait=False)` would have to wait. Not an error: call again with `wait=True` off the event loop."""
