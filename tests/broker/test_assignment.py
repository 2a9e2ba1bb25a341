"""The assignment: whole, even, the same for all, and no more moves than evenness asks for."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.assignment import assign
from taskq.broker.port import TopicPartition

MEMBERS = ["a", "b", "c", "d", "e", "f", "g"]
TOPICS = ["posts", "feed", "search"]

partition_counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 12), min_size=1)
some_members = st.lists(st.sampled_from(MEMBERS), unique=True, min_size=1)
subscriptions = st.dictionaries(st.sampled_from(MEMBERS), st.sets(st.sampled_from([*TOPICS, "unknown"])), min_size=1)
some_owners = st.dictionaries(
    st.builds(TopicPartition, st.sampled_from(TOPICS), st.integers(0, 15)), st.sampled_from([*MEMBERS, "gone"])
)


def moved(before: dict[TopicPartition, str], after: dict[TopicPartition, str]) -> set[TopicPartition]:
    return {tp for tp, member in after.items() if before.get(tp, member) != member}


@given(subscriptions, partition_counts, some_owners)
def test_every_partition_has_one_owner_who_subscribed_and_shares_of_a_topic_differ_by_one(members, partitions, owners):
    assigned = assign(members, partitions, owners)
    for topic, count in partitions.items():
        subscribed = [member for member, topics in members.items() if topic in topics]
        owner_of = [assigned.get(TopicPartition(topic, number)) for number in range(count)]
        if subscribed:
            shares = Counter(dict.fromkeys(subscribed, 0))
            shares.update(owner_of)
            assert set(shares) == set(subscribed)
            assert max(shares.values()) - min(shares.values()) <= 1
        else:
            assert owner_of == [None] * count
    assert all(tp.partition < partitions[tp.topic] for tp in assigned)


@given(some_members, partition_counts, some_owners)
def test_members_with_the_same_topics_have_totals_that_differ_by_one(members, partitions, owners):
    assigned = assign(dict.fromkeys(members, TOPICS), partitions, owners)
    totals = Counter(dict.fromkeys(members, 0))
    totals.update(assigned.values())
    assert max(totals.values()) - min(totals.values()) <= 1


@given(
    st.dictionaries(st.sampled_from(MEMBERS[:4]), st.sets(st.sampled_from(TOPICS), min_size=1), min_size=1),
    st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 7), min_size=1),
    some_owners,
)
def test_totals_are_as_even_as_even_topics_allow(members, partitions, owners):
    totals = Counter(assign(members, partitions, owners).values())
    assert sum(total**2 for total in totals.values()) == least_sum_of_squares(members, partitions)


def least_sum_of_squares(members: dict[str, set[str]], partitions: dict[str, int]) -> int:
    """By trying all choices of who gets one more."""
    base: Counter[str] = Counter()
    choices = []
    for topic, count in partitions.items():
        subscribed = [member for member, topics in members.items() if topic in topics]
        if subscribed:
            base.update({member: count // len(subscribed) for member in subscribed})
            choices.append(list(combinations(subscribed, count % len(subscribed))))
    return min(
        sum(total**2 for total in (base + Counter(member for extras in chosen for member in extras)).values())
        for chosen in product(*choices)
    )


@given(subscriptions, partition_counts, some_owners)
def test_a_balanced_assignment_comes_back_unchanged(members, partitions, owners):
    assigned = assign(members, partitions, owners)
    assert assign(members, partitions, assigned) == assigned


@given(subscriptions, partition_counts, some_owners, st.randoms())
def test_the_order_in_which_facts_are_told_does_not_matter(members, partitions, owners, rng):
    def shuffled(mapping: dict[Any, Any]) -> dict[Any, Any]:
        items = list(mapping.items())
        rng.shuffle(items)
        return dict(items)

    shuffled_members = {name: rng.sample(sorted(topics), len(topics)) for name, topics in shuffled(members).items()}
    told = assign(shuffled_members, shuffled(partitions), shuffled(owners))
    assert list(told.items()) == list(assign(members, partitions, owners).items())


@given(some_members, st.integers(1, 40))
def test_of_one_topic_one_who_joins_only_takes_his_share(members, count):
    subscribed = dict.fromkeys(members, TOPICS)
    before = assign(subscribed, {"posts": count}, {})
    after = assign({**subscribed, "joiner": TOPICS}, {"posts": count}, before)
    assert {after[tp] for tp in moved(before, after)} <= {"joiner"}
    assert len(moved(before, after)) == count // (len(members) + 1)


@given(some_members, partition_counts)
def test_of_many_topics_little_moves_but_to_one_who_joins(members, partitions):
    subscribed = dict.fromkeys(members, TOPICS)
    before = assign(subscribed, partitions, {})
    after = assign({**subscribed, "joiner": TOPICS}, partitions, before)
    others = [tp for tp in moved(before, after) if after[tp] != "joiner"]
    assert len(others) <= len(partitions)


@given(st.lists(st.sampled_from(MEMBERS), unique=True, min_size=2), st.integers(1, 40))
def test_of_one_topic_only_what_the_leaver_had_moves(members, count):
    subscribed = dict.fromkeys(members, ("posts",))
    before = assign(subscribed, {"posts": count}, {})
    leaver = subscribed.popitem()[0]
    after = assign(subscribed, {"posts": count}, before)
    assert moved(before, after) == {tp for tp, member in before.items() if member == leaver}


@given(st.lists(st.sampled_from(MEMBERS), unique=True, min_size=2), partition_counts)
def test_of_many_topics_little_more_than_what_the_leaver_had_moves(members, partitions):
    subscribed = dict.fromkeys(members, TOPICS)
    before = assign(subscribed, partitions, {})
    leaver = subscribed.popitem()[0]
    after = assign(subscribed, partitions, before)
    others = [tp for tp in moved(before, after) if before[tp] != leaver]
    assert len(others) <= len(partitions)


@given(subscriptions, partition_counts, some_owners, st.randoms(use_true_random=False))
def test_members_that_act_by_themselves_one_after_the_other_come_to_agree(members, partitions, owners, rng):
    """As embedded members do: each takes what is due to it and free, and gives up what is not, as it sees it then."""
    names = sorted(members)
    for turn in range(4 * len(names)):
        member = names[turn % len(names)]
        due = {tp for tp, name in assign(members, partitions, owners).items() if name == member}
        held = {tp for tp, name in owners.items() if name == member}
        free = {tp for tp in due if owners.get(tp) not in members}
        owners = {tp: name for tp, name in owners.items() if tp not in held - due}
        owners.update(dict.fromkeys(sorted(free)[: rng.randint(0, 4)] if turn < len(names) else free, member))
        if turn % len(names) == 0:
            rng.shuffle(names)
    agreed = assign(members, partitions, owners)
    assert {tp: name for tp, name in owners.items() if tp in agreed} == agreed


def test_a_single_member_has_everything():
    assert assign({"a": ["posts"]}, {"posts": 3, "feed": 2}, {}) == {
        TopicPartition("posts", number): "a" for number in range(3)
    }


def test_nobody_has_nothing():
    assert assign({}, {"posts": 3}, {TopicPartition("posts", 0): "gone"}) == {}


def test_partitions_that_are_added_move_nothing():
    members = dict.fromkeys("abc", ("posts",))
    before = assign(members, {"posts": 6}, {})
    after = assign(members, {"posts": 12}, before)
    assert moved(before, after) == set()
    assert Counter(after.values()) == dict.fromkeys("abc", 4)
