"""Any sequence of calls: every engine does what the broker in memory does, and a group keeps its promises."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from taskq.broker.log.files import RealFiles
from taskq.broker.port import Broker, Committed, Message, Record, TopicPartition
from taskq.errors import ConfigError, TopicNotFound
from tests.conformance.engines import ENGINES, PARTITIONS, TOPICS, Engine
from tests.conformance.members import Member, settle

topics = st.sampled_from(["single", "double", "posts"])
groups = st.sampled_from(["feed", "search"])
keys = st.binary(max_size=3)
values = st.binary(max_size=20) | st.sampled_from([5000, 70_000]).map(bytes)
headers = st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=5)), max_size=2).map(tuple)
messages = st.builds(Message, values | st.none(), keys, headers)
partitions = st.builds(TopicPartition, topics, st.integers(0, PARTITIONS))
_boots = itertools.count(1)


class Machine(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()

    def open(self) -> Broker:
        return self.engine.open(Path(self._directory.name))

    def teardown(self) -> None:
        self._directory.cleanup()


def run(machine: type[Machine], engine: Engine, examples: int) -> None:
    made = type(machine.__name__, (machine,), {"engine": engine})
    long = settings().max_examples // 100  # 100 is the default, and the profile for `make crash` says more
    run_state_machine_as_test(made, settings=settings(max_examples=examples * long, stateful_step_count=30))


class SameAsMemory(Machine):
    """Each step is done on both, and answers are compared. One member per group, so that they are comparable."""

    def __init__(self) -> None:
        super().__init__()
        self.brokers = (ENGINES["memory"].open(Path()), self.open())
        self.use()
        self.members: dict[str, tuple[Member, Member]] = {}
        self._boots = ExitStack()

    def use(self) -> None:
        self.producers = [broker.producer() for broker in self.brokers]
        self.readers = [broker.reader() for broker in self.brokers]
        self.admins = [broker.admin() for broker in self.brokers]

    def same(self, ask: Callable[[int], object]) -> None:
        def answer(number: int) -> object:
            try:
                return ask(number)
            except (TopicNotFound, ConfigError) as error:
                return type(error)

        assert answer(0) == answer(1)

    @rule(topic=topics, message=messages)
    def send(self, topic: str, message: Message) -> None:
        self.same(lambda n: self.producers[n].send(topic, *message))

    @rule(topic=topics, some=st.lists(messages, max_size=30))
    def send_many(self, topic: str, some: list[Message]) -> None:
        self.same(lambda n: self.producers[n].send_many(topic, some))

    @rule(tp=partitions, offset=st.integers(0, 40), bytes_max=st.sampled_from([100, 1000, 1 << 20]))
    def read_on(self, tp: TopicPartition, offset: int, bytes_max: int) -> None:
        def read(number: int) -> list[object]:
            found: list[Record] = []
            while records := self.readers[number].read(tp, found[-1].offset + 1 if found else offset, bytes_max):
                found += records
            return [record._replace(timestamp_ms=0) for record in found]

        self.same(read)

    @rule(topic=topics, count=st.integers(1, PARTITIONS), segment_bytes=st.sampled_from([1024, 4096, 1 << 30]))
    def create(self, topic: str, count: int, segment_bytes: int) -> None:
        self.same(lambda n: self.admins[n].create_topic(topic, count, segment_bytes=segment_bytes))

    @precondition(lambda self: not self.members)
    @rule(topic=topics, count=st.none() | st.integers(1, PARTITIONS + 1), segment_bytes=st.sampled_from([1024, 4096]))
    def alter(self, topic: str, count: int | None, segment_bytes: int) -> None:
        self.same(lambda n: self.admins[n].alter_topic(topic, count, segment_bytes=segment_bytes))

    @precondition(lambda self: not self.members)
    @rule(topic=topics)
    def delete(self, topic: str) -> None:
        self.same(lambda n: self.admins[n].delete_topic(topic))

    @rule(reboots=st.booleans())
    def reopen(self, reboots: bool) -> None:
        """Memory stays, and everybody else begins anew; after a reboot, with heads that nothing is known of."""
        for group in list(self.members):
            self.leave(group)
        self.brokers[1].close()
        if reboots:
            boot = next(_boots), 0
            self._boots.enter_context(patch.object(RealFiles, "boot_id", lambda files: boot))
        self.brokers = (self.brokers[0], self.open())
        self.use()

    @rule(topic=topics)
    def describe(self, topic: str) -> None:
        self.same(lambda n: evolve(self.admins[n].describe_topic(topic), size_bytes=()))

    @rule(tp=partitions)
    def bounds(self, tp: TopicPartition) -> None:
        self.same(lambda n: self.readers[n].bounds(tp))

    @rule(group=groups, subscribed=st.sets(topics, min_size=1))
    def join(self, group: str, subscribed: set[str]) -> None:
        if group not in self.members:
            first, second = (Member(broker.consumer(group, sorted(subscribed))) for broker in self.brokers)
            self.members[group] = first, second
            count = sum(self.admins[0].partitions(topic) for topic in subscribed)
            for member in (first, second):
                member.poll_until(lambda member=member: len(member.held) == count)  # type: ignore[misc]
            assert first.held == second.held

    @precondition(lambda self: self.members)
    @rule()
    def drain(self) -> None:
        for group, both in self.members.items():
            for member in both:
                member.drain()
            assert both[0].positions == both[1].positions, group

    @rule(group=groups, back=st.integers(0, 5), metadata=st.binary(max_size=100))
    def commit(self, group: str, back: int, metadata: bytes) -> None:
        if group not in self.members:
            self.join(group, {"double"})
        for member in self.members[group]:
            member.drain()
            progress = {tp: Committed(max(at - back, 0), metadata) for tp, at in member.positions.items()}
            member.consumer.commit(progress)

    @precondition(lambda self: self.members)
    @rule(group=groups, choice=st.integers(0, 20), pause=st.booleans())
    def pause_or_resume(self, group: str, choice: int, pause: bool) -> None:
        for member in self.members.get(group, ()):
            tp = sorted(member.held)[choice % len(member.held)]
            (member.consumer.pause if pause else member.consumer.resume)([tp])

    @precondition(lambda self: self.members)
    @rule(group=groups)
    def leave(self, group: str) -> None:
        for member in self.members.pop(group, ()):
            member.consumer.close()

    @invariant()
    def admin_sees_the_same(self) -> None:
        self.same(lambda n: self.admins[n].topics())
        self.same(lambda n: self.admins[n].describe_group("feed").committed)

    def teardown(self) -> None:
        for group, both in self.members.items():
            for member in both:
                member.consumer.resume(sorted(member.held))
                member.drain()
            assert untimed(both[0]) == untimed(both[1]), group
        for broker in self.brokers:
            broker.close()
        self._boots.close()
        super().teardown()


def untimed(member: Member) -> dict[TopicPartition, list[Record]]:
    return {tp: [r._replace(timestamp_ms=0) for r in records] for tp, records in member.records.items()}


class Group(Machine):
    """Members of one group come, go, hold on and let go; a partition has one holder and all records are delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = self.open()
        self.producer = self.broker.producer()
        self.members: list[Member] = []
        self.sent: dict[TopicPartition, int] = {}

    def member(self, choice: int) -> Member:
        return self.members[choice % len(self.members)]

    @precondition(lambda self: len(self.members) < 4)
    @rule()
    def join(self) -> None:
        self.members.append(Member(self.broker.consumer("feed", ["posts", "double"])))

    @rule(topic=st.sampled_from(["posts", "double"]), key=keys)
    def send(self, topic: str, key: bytes) -> None:
        partition, offset = self.producer.send(topic, b"x", key)
        self.sent[TopicPartition(topic, partition)] = offset + 1

    @precondition(lambda self: self.members)
    @rule(choice=st.integers(0, 3), timeout=st.sampled_from([0.0, 0.02]))
    def poll(self, choice: int, timeout: float) -> None:
        self.member(choice).poll(timeout)

    @precondition(lambda self: self.members)
    @rule(choice=st.integers(0, 3))
    def let_go(self, choice: int) -> None:
        self.member(choice).let_go()

    @precondition(lambda self: self.members)
    @rule(choice=st.integers(0, 3))
    def keep(self, choice: int) -> None:
        member = self.member(choice)
        member.consumer.keep(sorted(member.revoking))
        member.revoking.clear()

    @precondition(lambda self: self.members)
    @rule(choice=st.integers(0, 3), commits=st.booleans())
    def leave(self, choice: int, commits: bool) -> None:
        member = self.members.pop(choice % len(self.members))
        if commits:
            member.commit()
        member.consumer.close()

    @invariant()
    def a_partition_has_one_holder(self) -> None:
        held = [tp for member in self.members for tp in member.held]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        if not self.members:
            self.join()
        settle(*self.members, until=self.is_even, lets_go=True)
        for member in self.members:
            member.drain()
            for tp, position in member.positions.items():
                assert position == self.sent.get(tp, 0)
        self.broker.close()
        super().teardown()

    def is_even(self) -> bool:
        shares = [len(member.held) for member in self.members]
        asked = any(member.revoking for member in self.members)
        return sum(shares) == PARTITIONS + TOPICS["double"] and max(shares) - min(shares) <= 1 and not asked


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "memory"])
def test_any_sequence_of_calls_answers_as_memory_does(engine: str):
    run(SameAsMemory, ENGINES[engine], examples=25)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_keeps_its_promises_whoever_comes_and_goes(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ENGINES[engine].keep_s, 0.05)
    run(Group, ENGINES[engine], examples=25)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_sent_to_a_topic_that_was_deleted_makes_it_anew(engine: str, tmp_path: Path):
    """What the first test found once."""
    broker = ENGINES[engine].open(tmp_path)
    producer, admin = broker.producer(), broker.admin()
    producer.send_many("single", [])
    admin.delete_topic("single")
    producer.send_many("single", [])
    assert admin.topics() == ["single"]
    broker.close()
