"""Members of a group that look at it at different moments, while others take and release: none is left over."""

from __future__ import annotations

import random
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from taskq.broker import consumer
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import offsets
from taskq.broker.memory import MemoryBroker
from taskq.broker.port import Consumer, TopicPartition

TOPICS = tuple("abcdefghijk")
TPS = {TopicPartition(topic, number) for topic in TOPICS for number in range(2)}


class Group:
    """Members that come and go; in the midst of one's look at who owns what, others may have their turn."""

    def __init__(self, broker: EmbeddedBroker, seed: int) -> None:
        self.broker = broker
        self.draw = random.Random(seed)
        self.held: dict[Consumer, set[TopicPartition]] = {}
        self.looking: list[Consumer] = []
        self.often = 0.0

    def owner(self, *arguments: Any) -> str:
        seen = OWNER(*arguments)
        others = [member for member in self.held if member not in self.looking]
        if others and self.draw.random() < self.often:
            self.turn(self.draw.choice(others))
        return seen

    def turn(self, member: Consumer, within_s: float = 0) -> None:
        self.looking.append(member)
        polled = member.poll(within_s)
        self.held[member] |= polled.assigned.keys()
        if polled.revoking:
            member.release(list(polled.revoking))
            self.held[member] -= polled.revoking
        self.looking.remove(member)

    def change(self) -> None:
        """One comes, or one goes, and some have a turn."""
        if len(self.held) < 2 or (len(self.held) < 5 and self.draw.random() < 0.5):
            self.held[self.broker.consumer("group", TOPICS)] = set()
        else:
            gone = self.draw.choice(list(self.held))
            del self.held[gone]
            gone.close()
        for _ in range(self.draw.randrange(10)):
            self.turn(self.draw.choice(list(self.held)))

    def close(self) -> None:
        for member in self.held:
            member.close()


OWNER = offsets.owner


@pytest.mark.parametrize("seed", range(60))
def test_every_partition_has_a_member_once_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(consumer, "TICK_S", 0.0)
    with (
        closing(EmbeddedBroker(str(tmp_path), partitions_default=2)) as broker,
        closing(Group(broker, seed)) as group,
    ):
        monkeypatch.setattr(offsets, "owner", group.owner)
        for _ in range(8):
            group.often = 0.3
            group.change()
            group.often = 0.0
            for _ in range(6):
                for member in group.held:
                    group.turn(member, 0.001)
            held = [tp for tps in group.held.values() for tp in tps]
            assert sorted(held) == sorted(TPS)


def test_a_member_that_saw_it_otherwise_than_it_is_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=3)) as broker, ExitStack() as opened:
        one, two, leaver = (broker.consumer("group", ["a"]) for _ in range(3))
        heir, other = sorted([one, two], key=lambda member: member.member_id)
        for member in (heir, other):
            opened.enter_context(closing(member)).poll(5)
        (left,) = leaver.poll(5).assigned
        leaver.close()
        with monkeypatch.context() as lies:
            lies.setattr(consumer, "LOOK_S", 3 * consumer.TICK_S)
            lies.setattr(offsets, "owner", lambda *_: other.member_id)
            assert not heir.poll(2 * consumer.TICK_S).assigned
        assert list(heir.poll(5).assigned) == [left]


def test_a_topic_that_is_made_anew_has_members_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "LOOK_S", 1000.0)
    with closing(EmbeddedBroker(str(tmp_path), partitions_default=1)) as broker, ExitStack() as opened:
        first = opened.enter_context(closing(broker.consumer("group", ["a"])))
        assert first.poll(5).assigned
        while (other := opened.enter_context(closing(broker.consumer("group", ["a"])))).member_id > first.member_id:
            other.leave()
        assert not other.poll(2 * consumer.TICK_S).assigned  # it is due to the first one, who has it
        broker.admin().delete_topic("a")
        broker.admin().create_topic("a", 1)
        assert first.poll(5).lost
        assert other.poll(5).assigned


@pytest.mark.parametrize("is_embedded", [True, False])
def test_what_was_kept_is_given_up_when_its_owner_leaves(tmp_path: Path, is_embedded: bool) -> None:
    made = EmbeddedBroker(str(tmp_path), partitions_default=2) if is_embedded else MemoryBroker(partitions_default=2)
    with closing(made) as broker, closing(broker.consumer("group", ["a"])) as member:
        assert len(member.poll(5).assigned) == 2
        with closing(broker.consumer("group", ["a"])):
            (asked,) = member.poll(5).revoking
            member.keep([asked])
            member.leave()
            assert len(member.poll(1).revoking) == 2
