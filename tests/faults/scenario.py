"""Something of everything that touches the disk, and the books about what was promised meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from taskq.broker import embedded
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names, replacement
from taskq.broker.log.batch import BASE_OFFSET, ProducerStamp, encode_many, encode_one
from taskq.broker.log.head import INTENT, SYNCED, Notice
from taskq.broker.log.idempotence import IdempotentAppender, next_producer_id
from taskq.broker.log.offsets import COMMITS_UNSYNCED_MAX
from taskq.broker.log.sealed import encode_sealed
from taskq.broker.port import Admin, Committed, Consumer, Lost, Message, Polled, Reader, TopicPartition
from taskq.config import Durability
from taskq.errors import BrokerError, StorageFull
from taskq.topics import TopicConfig
from tests.faults.injector import FaultyFiles
from tests.fuzz.mutations import sealed

TOPICS = {
    "one": TopicConfig(1, {"segment_bytes": 12 * 1024}),
    "keyed": TopicConfig(1, {"segment_bytes": 1024, "cleanup_policy": "compact"}),
    "worn": TopicConfig(1, {"segment_bytes": 1024, "cleanup_policy": "compact"}),
    "harmed": TopicConfig(1, {"segment_bytes": 1024}),
    "numbered": TopicConfig(1, {"segment_bytes": 1024, "retention_bytes": 1024, "unfinished": "delete"}),
    "old": TopicConfig(1, {"segment_bytes": 1024, "retention_bytes": 2048, "unfinished": "delete"}),
}
_GROUP = "feed"
_ONE = TopicPartition("one", 0)
_POLLS = 200
_CLEANINGS = 2
_ATTRIBUTES_AT = 22


class Scenario:
    """Runs its steps in order. One that ends in an error is tried again: after StorageFull as it is, else reopened."""

    def __init__(self, root: Path, files: FaultyFiles) -> None:
        self.root = str(root)
        self.files = files
        self.errors: list[str] = []
        self.acknowledged: dict[TopicPartition, dict[int, bytes]] = {}
        self.sent: set[bytes] = set()
        self.committed: dict[TopicPartition, Committed] = {}
        self.last: dict[tuple[str, int], bytes] = {}
        """By topic and key, what was sent last to the topics that are cleaned."""
        self.attempted: dict[TopicPartition, list[Committed]] = {}
        self._broker: EmbeddedBroker | None = None
        self._durability = Durability("interval", 60_000)

    def run(self) -> None:
        for step in STEPS:
            self.attempt(lambda step=step: step(self))  # type: ignore[misc]
        self.attempt(self.close)

    def attempt(self, step: Callable[[], None]) -> None:
        """Anything but a BrokerError, such as an OSError, is a failure of the test."""
        try:
            step()
        except StorageFull as error:
            self.errors.append(repr(error))  # the error itself would keep everything alive
        except BrokerError as error:
            self.errors.append(repr(error))
            try:
                self.close()
            except BrokerError as second:
                self.errors.append(repr(second))
        else:
            return
        step()

    @property
    def broker(self) -> EmbeddedBroker:
        if self._broker is None:
            vars(embedded)["RealFiles"] = lambda **_: self.files
            self._broker = EmbeddedBroker(self.root, durability=self._durability, partitions_default=1, topics=TOPICS)
        return self._broker

    def close(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()

    def directory(self, tp: TopicPartition) -> Path:
        return Path(names.partition(names.topic(self.root, tp.topic), tp.partition))

    # -- what is done

    def send(self, topic: str, size: int = 20, key: bytes | None = None) -> None:
        value = f"{len(self.sent)}.".encode().ljust(size, b"x")
        self.sent.add(value)
        number, offset = self.broker.producer().send(topic, value, key)
        self.acknowledged.setdefault(TopicPartition(topic, number), {})[offset] = value

    def publish(self) -> None:
        """First appends, index entries, rolls."""
        for size in (20, 5000, 20, 5000, 5000, 20, 5000, 20):
            self.send("one", size)
        for size in (20, 5000, 70_000, 20):
            self.send("two", size, key=b"k")
        self.broker.producer().close()

    def publish_in_bulk(self) -> None:
        messages = [Message(f"{len(self.sent) + n}.".encode()) for n in range(20)]
        self.sent |= {message.value for message in messages if message.value}
        self.broker.producer().send_many("one", messages)

    def create(self) -> None:
        if "two" not in self.broker.admin().topics():
            self.broker.admin().create_topic("two", 2)
        self.broker._directory.catalogue.create("two", 2, {}, exist_ok=True)

    def publish_durably(self) -> None:
        self.reopen("fsync")
        for size in (20, 5000, 5000, 5000, 20):
            self.send("one", size)

    def reopen(self, kind: str) -> None:
        self.close()
        self._durability = Durability(kind, 60_000 if kind == "interval" else 0)

    def consume(self) -> None:
        """Join beside a member that died, fetch, commit, sleep until something comes, and leave."""
        members = Path(names.members(self.root, _GROUP))
        if members.is_dir():
            (members / "dead").write_text('["one"]')
        with closing(self.broker.consumer(_GROUP, ["one", "two"])) as consumer:
            self.take_part(consumer)

    def take_part(self, consumer: Consumer) -> None:
        held: dict[TopicPartition, int] = {}
        for _ in range(_POLLS):
            if len(held) == 3:
                break
            for tp, committed in consumer.poll(0.01).assigned.items():
                known = self.committed.get(tp, Committed(0))
                assert committed == known or committed in self.attempted.get(tp, ()), f"{tp}: {committed}, not {known}"
                assert committed.offset >= known.offset, f"{tp}: the commit went back"
                held[tp] = committed.offset
        assert len(held) == 3, f"only {held} were free"
        while (polled := consumer.poll(0)) != Polled():
            for error in polled.errors.values():
                raise error
            held.update({tp: records[-1].offset + 1 for tp, records in polled.fetched})
        self.commit(consumer, held)
        consumer.poll(0.001)  # which asks to be woken
        self.send("one")
        consumer.leave()
        revoking = consumer.poll(1).revoking
        consumer.release(sorted(revoking))

    def commit(self, consumer: Consumer, held: dict[TopicPartition, int]) -> None:
        for tp, offset in list(held.items()) + [(_ONE, held[_ONE])] * COMMITS_UNSYNCED_MAX:
            committed = Committed(offset, b"m" * 20)
            self.attempted.setdefault(tp, []).append(committed)
            consumer.commit({tp: committed})
            self.committed[tp] = committed

    def look(self) -> None:
        with closing(self.broker.reader()) as reader:
            self._look(self.broker.admin(), reader)

    def _look(self, admin: Admin, reader: Reader) -> None:
        assert "one" in admin.topics()
        admin.describe_topic("one")
        admin.describe_group(_GROUP)
        admin.groups()
        min(self.directory(_ONE).glob("*.index")).unlink(missing_ok=True)  # of a closed segment: it is made anew
        two = TopicPartition("two", 0 if reader.bounds(TopicPartition("two", 0)).end else 1)
        assert len(reader.read(two, reader.bounds(two).end - 1)) == 1
        bounds = reader.bounds(_ONE)
        for offset in (bounds.start, bounds.end // 2, bounds.end - 1, bounds.end):
            reader.read(_ONE, offset)
        for timestamp_ms in (0, 1 << 50):
            reader.offset_for(_ONE, timestamp_ms)

    def alter_and_delete(self) -> None:
        admin = self.broker.admin()
        for topic in {"altered", "gone"} - set(admin.topics()):
            admin.create_topic(topic, 1)
        admin.alter_topic("altered", 2, retention_ms=1000)
        self.broker.producer().send("gone", b"gone, maybe")
        admin.delete_topic("gone")
        topics = Path(names.topics(self.root))
        for left in ("half~", "other"):  # of those who died while they created or deleted one
            (topics / left / "0").mkdir(parents=True, exist_ok=True)
        self.broker._directory.catalogue.finish()
        if "half" not in admin.topics():  # else this is the second try
            admin.create_topic("half", 1)
        admin.delete_topic("half")

    def clean(self) -> None:
        """Retention and compaction. The cleaner's thread logs what goes wrong, and tries again."""
        for number in range(30):
            value = f"{number % 3}.{len(self.sent)}.".encode().ljust(200, b"x")
            self.sent.add(value)
            for topic in ("keyed", "old"):
                self.broker.producer().send(topic, value, b"%d" % (number % 3))
                self.last[topic, number % 3] = value
        self.broker.producer().send("worn", b"w" * 900, b"k")
        self.broker.producer().send("worn", b"w" * 900, b"k")
        self.harm("worn", 500)  # compaction stops there
        keyed = str(self.directory(TopicPartition("keyed", 0)))
        Path(names.merging(keyed)).write_bytes(encode_sealed({"base": 0, "end": -1, "others": []}))
        Path(replacement.temporary(names.log(keyed, 0))).touch()
        rubbish = Path(f"{names.checkpoint(keyed)}.1-1.tmp")  # of a writer that died long ago
        rubbish.touch()
        os.utime(rubbish, (0, 0))
        for _ in range(_CLEANINGS):
            with suppress(OSError, BrokerError):
                self.broker._cleaner.clean()

    def append_idempotently(self) -> None:
        tp = TopicPartition("numbered", 0)
        self.broker.producer().send_many(tp.topic, [])
        producer = next_producer_id(self.files, self.root)
        partition = self.broker._directory.partition(tp)
        for _ in range(2):  # the second one begins at the snapshot of the first
            appender = IdempotentAppender(self.files, partition)
            try:
                (self.directory(tp) / Path(names.snapshot("", 10**9)).name).touch()  # of what a recovery cut
                for sequence in (0, 0, 1, 2, 3):
                    stamp = ProducerStamp(producer, 0, sequence)
                    appender.append(encode_many([Message(b"gone, maybe".ljust(600))], 1, stamp))
                    partition.sync()
            finally:
                appender.close()

    def pass_over_damage(self) -> None:
        """In the middle of a partition, and at a batch that is not all there."""
        for size in (100, 100, 100, 20_000):
            self.broker.producer().send("harmed", b"gone, maybe".ljust(size))
        zipped = bytearray(BASE_OFFSET.pack(0) + encode_one(b"gone, maybe", None, (), 1))
        zipped[_ATTRIBUTES_AT] |= 1
        self.broker._directory.partition(TopicPartition("harmed", 0)).append(sealed(zipped)[8:], 1, 1)
        self.broker.producer().send("harmed", b"gone, maybe")
        self.harm("harmed", 250)
        lost: list[Lost] = []
        with closing(self.broker.reader()) as reader:
            for tp in (TopicPartition("harmed", 0), TopicPartition("lost", 0)):
                offset = 0
                while records := reader.read(tp, offset, lost=lost.append):
                    offset = records[-1].offset + 1
        assert lost

    def harm(self, topic: str, position: int) -> None:
        with min(self.directory(TopicPartition(topic, 0)).glob("*.log")).open("r+b") as file:
            file.seek(position)
            file.write(b"garbage")

    # -- what goes wrong

    def die_while_appending(self) -> None:
        """A writer died that was about to begin a segment, and one in the middle of a batch."""
        partition = self.broker._directory.partition(_ONE)
        state = partition._head.state()
        last = Path(names.log(str(self.directory(_ONE)), state.segment_base))
        with last.open("ab") as file:
            file.write(b"torn")
        Path(names.log(str(self.directory(_ONE)), state.next_offset + 7)).touch()
        partition._words[INTENT] += 1
        self.send("one")

    def fail_to_sync(self) -> None:
        """An fsync failed: who opens the partition next repairs it. In `lost` a part of what was written is gone."""
        lost = TopicPartition("lost", 0)
        for _ in range(3):
            self.broker.producer().send("lost", b"gone, maybe")
        for tp in (_ONE, lost):
            head = self.broker._directory.partition(tp)._head
            head.words[SYNCED] = head.state().next_offset - 2
            head.notify(Notice.FAILED)
        (log,) = self.directory(lost).glob("*.log")
        self.close()
        with log.open("r+b") as file:
            file.seek(-30, 2)
            file.write(b"garbage")
        self.send("one")
        self.send("lost")

    def reboot(self) -> None:
        """The power was cut: torn tails, one with sound batches after it; an empty segment; a part that was synced is
        gone; commits that outlived their records."""
        torn, gap, beyond = (TopicPartition(topic, 0) for topic in ("torn", "gap", "beyond"))
        for tp in (torn, gap, beyond):
            for _ in range(3):
                self.broker.producer().send(tp.topic, b"gone, maybe")
        with closing(self.broker.consumer("late", ["beyond"])) as consumer:
            while not consumer.poll(0.01).assigned:
                pass
            consumer.commit({beyond: Committed(2, b"more")})
        self.close()
        self.files.boot = (self.files.boot[0] + 1, 1)
        for tp, keep in ((torn, 90), (gap, 10), (beyond, 90)):
            log = min(self.directory(tp).glob("*.log"))
            log.write_bytes(log.read_bytes()[:keep])
            if tp != gap:
                (self.directory(tp) / "checkpoint").unlink(missing_ok=True)
        end = 1 + 1
        with min(self.directory(torn).glob("*.log")).open("ab") as file:
            file.write(b"garbage" + BASE_OFFSET.pack(end) + encode_one(b"gone, maybe", None, (), 1))
        last = max(self.directory(_ONE).glob("*.log"))
        last.with_name(f"{10_000:020}.log").touch()
        for topic in ("one", "torn", "gap", "beyond"):
            self.send(topic)


def abandon(scenario: Scenario) -> None:
    """After a failure: leave nothing behind that the next scenario would trip over."""
    scenario.files.faults = ()
    with suppress(BrokerError, OSError, AssertionError):
        scenario.close()


STEPS: tuple[Callable[[Scenario], None], ...] = (
    Scenario.create,
    Scenario.publish,
    Scenario.publish_in_bulk,
    Scenario.consume,
    Scenario.look,
    Scenario.alter_and_delete,
    Scenario.clean,
    Scenario.publish_durably,
    Scenario.die_while_appending,
    Scenario.fail_to_sync,
    Scenario.append_idempotently,
    Scenario.pass_over_damage,
    Scenario.consume,
    lambda scenario: scenario.reopen("interval"),
    Scenario.reboot,
    Scenario.clean,
    Scenario.publish,
    Scenario.consume,
    Scenario.look,
)
