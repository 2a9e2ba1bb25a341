"""Several members: who has what, and how partitions pass from one to another."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter

import pytest

from taskq.broker.partitioner import partition_for_key
from taskq.broker.port import Committed, Message, Producer, TopicPartition
from taskq.errors import ConfigError
from tests.conformance.engines import PARTITIONS
from tests.conformance.members import WAIT_S, Member, settle

KEYS = [
    next(b"%d" % n for n in range(1000) if partition_for_key(b"%d" % n, PARTITIONS) == p) for p in range(PARTITIONS)
]
"""One for each partition of `posts`."""

POSTS = {TopicPartition("posts", number) for number in range(PARTITIONS)}


def has_all(*members: Member):
    """A condition: together they hold all partitions of `posts`, evenly, and nobody is asked for any."""

    def condition() -> bool:
        shares = [len(member.held) for member in members]
        return sum(shares) == PARTITIONS and max(shares) - min(shares) <= 1 and not any(m.revoking for m in members)

    return condition


def test_members_share_the_partitions_and_each_record_goes_to_one(producer: Producer, join):
    members = [join("feed", "posts") for _ in range(3)]
    settle(*members, until=has_all(*members), lets_go=True)
    producer.send_many("posts", [Message(b"%d" % number) for number in range(1000)])
    settle(*members, until=lambda: sum(len(member.values) for member in members) >= 1000)
    for member in members:
        member.drain()
    values = Counter(value for member in members for value in member.values)
    assert values == Counter(b"%d" % number for number in range(1000))


def test_more_members_than_partitions_leave_some_idle(join, admin):
    members = [join("feed", "single") for _ in range(3)]
    settle(*members, until=lambda: any(member.held for member in members))
    assert sorted(len(member.held) for member in members) == [0, 0, 1]
    assert len(admin.describe_group("feed").owners) == 1


def test_a_partition_is_handed_over_only_after_its_release(producer: Producer, join, admin):
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    producer.send_many("posts", [Message(b"%d" % number) for number in range(100)])
    first.poll_until(lambda: len(first.values) == 100)
    second = join("feed", "posts")
    settle(first, second, until=lambda: len(first.revoking) == PARTITIONS // 2)
    for _ in range(5):
        first.poll(0.05)
        second.poll(0.05)
    assert second.held == {}
    assert set(admin.describe_group("feed").owners.values()) == {first.consumer.member_id}
    asked = set(first.revoking)
    ends = {tp: Committed(first.positions[tp]) for tp in asked}
    first.let_go()
    settle(first, second, until=has_all(first, second))
    assert second.held == ends
    assert first.held.keys() == POSTS - asked, "the others stay where they are"


def test_a_partition_that_is_asked_for_brings_no_more_records(producer: Producer, join):
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    second = join("feed", "posts")
    settle(first, second, until=lambda: len(first.revoking) == PARTITIONS // 2)
    half = 32 * PARTITIONS // 2
    producer.send_many("posts", [Message(b"x", key) for key in KEYS] * (half // 2))
    first.poll_until(lambda: len(first.values) == half)
    first.drain()
    assert not first.revoking & first.records.keys()
    first.let_go()
    settle(first, second, until=lambda: len(second.values) == half)


def test_progress_of_what_is_asked_for_can_be_committed_until_it_is_released(producer: Producer, join):
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    producer.send_many("posts", [Message(b"x")] * 40)
    first.poll_until(lambda: len(first.values) == 40)
    second = join("feed", "posts")
    settle(first, second, until=lambda: bool(first.revoking))
    committed = {tp: Committed(1, b"above") for tp in first.revoking}
    first.consumer.commit(committed)
    first.consumer.release(sorted(first.revoking))
    second.poll_until(lambda: second.held.keys() == committed.keys())
    assert second.held == committed


def test_what_is_kept_goes_on_and_is_asked_for_again_later(producer: Producer, join, engine, monkeypatch):
    keep_s = 1.0
    monkeypatch.setattr(engine.keep_s, keep_s)
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    second = join("feed", "posts")
    settle(first, second, until=lambda: len(first.revoking) == PARTITIONS // 2)
    kept = sorted(first.revoking)
    kept_at = time.monotonic()
    first.consumer.keep(kept)
    first.revoking.clear()
    producer.send_many("posts", [Message(b"x")] * 400)
    first.poll_until(lambda: len(first.values) == 400)
    first.drain()
    assert second.held == {}
    assert first.poll().revoking == set(kept), "the poll that waits is told"
    assert keep_s <= time.monotonic() - kept_at < WAIT_S
    first.let_go()
    settle(first, second, until=has_all(first, second))


def test_a_poll_that_waits_learns_of_a_member_that_joins(join):
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    asked: queue.Queue[bool] = queue.Queue()
    thread = threading.Thread(target=lambda: asked.put(bool(first.poll().revoking)), daemon=True)
    thread.start()
    join("feed", "posts")
    assert asked.get(timeout=WAIT_S / 2)
    thread.join(WAIT_S)


def test_who_leaves_frees_everything_and_a_poll_that_waits_takes_it(join):
    first, second = join("feed", "posts"), join("feed", "posts")
    settle(first, second, until=has_all(first, second), lets_go=True)
    taken: queue.Queue[bool] = queue.Queue()

    def take() -> None:
        while len(second.held) < PARTITIONS:
            second.poll()
        taken.put(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    first.consumer.close()
    assert taken.get(timeout=WAIT_S / 2)
    thread.join(WAIT_S)


def test_who_leaves_while_asked_for_something_frees_that_too(join):
    first = join("feed", "posts")
    settle(first, until=has_all(first))
    second = join("feed", "posts")
    settle(first, second, until=lambda: bool(first.revoking))
    first.consumer.close()
    second.poll_until(has_all(second))


def test_who_joins_takes_few_and_who_leaves_moves_only_his(join):
    first, second = join("feed", "posts"), join("feed", "posts")
    settle(first, second, until=has_all(first, second), lets_go=True)
    before = {tp: member for member in (first, second) for tp in member.held}
    third = join("feed", "posts")
    settle(first, second, third, until=has_all(first, second, third), lets_go=True)
    assert sum(tp in member.held for tp, member in before.items()) == PARTITIONS - 1
    held_by_others = {tp: member for member in (second, third) for tp in member.held}
    first.consumer.close()
    settle(second, third, until=has_all(second, third), lets_go=True)
    assert all(tp in member.held for tp, member in held_by_others.items())


def test_members_get_only_topics_they_subscribed_to_and_an_even_share_of_each(join):
    both, one = join("feed", "posts", "double"), join("feed", "posts")
    settle(
        both,
        one,
        until=lambda: (len(both.held), len(one.held)) == (PARTITIONS // 2 + 2, PARTITIONS // 2),
        lets_go=True,
    )
    assert {tp.topic for tp in one.held} == {"posts"}


def test_groups_do_not_take_partitions_from_each_other(join):
    feed, search = join("feed", "posts"), join("search", "posts")
    settle(feed, search, until=lambda: feed.held.keys() == search.held.keys() == POSTS)
    assert not feed.revoking | search.revoking


def test_records_pass_through_many_handovers_with_each_finished_once(producer: Producer, join):
    """Members come and go while records come; each commits what it got before it lets go, so none comes twice."""
    members = [join("feed", "posts")]
    got: list[bytes | None] = []
    for round_number in range(8):
        producer.send_many("posts", [Message(b"%d %d" % (round_number, number)) for number in range(50)])
        if round_number in (1, 3, 4):
            members.append(join("feed", "posts"))
        elif round_number in (2, 6):
            leaver = members.pop(0)
            leaver.commit()
            leaver.consumer.close()
            got += leaver.values
        settle(*members, until=has_all(*members), lets_go=True)
    settle(*members, until=lambda: len(got) + sum(len(member.values) for member in members) >= 400, lets_go=True)
    got += [value for member in members for value in member.values]
    assert Counter(got) == Counter(b"%d %d" % (round_number, n) for round_number in range(8) for n in range(50))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "\u00e9", "x" * 241])
def test_a_group_of_a_name_that_is_not_allowed_is_refused(broker, admin, name: str):
    with pytest.raises(ConfigError, match="group"):
        broker.consumer(name, ["posts"])
    assert admin.groups() == []


def test_a_group_can_not_read_a_topic_of_a_name_that_is_not_allowed(broker):
    with pytest.raises(ConfigError, match="topic"):
        broker.consumer("feed", ["a/b"])
