"""Who has which partition. Pure: every member computes the same from the same facts, so no one need be asked.

In order of weight:

1. Each topic is divided evenly among the members subscribed to it: the shares differ by one at most.
2. Members' totals are as even as that allows. With the same subscriptions they differ by one at most. Only the *extras*
   can be chosen: a topic of 8 partitions and 3 members gives each 2, and 2 of them one more.
3. Partitions stay where they are: a balanced assignment comes back unchanged. With one topic, one who joins only takes,
   and what one who leaves had is all that moves; with many, evenness may ask for one more move for a topic.

Evenness of totals is a problem of optimal semi-matching (Harvey, Ladner, Lovász, Tamir, 2006): an assignment is best
exactly when no extra can be passed on, from member to member, so that one who has two more than another gives him one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import NamedTuple

from taskq.broker.port import TopicPartition


class _Topic(NamedTuple):
    owned: dict[str, list[int]]
    """Subscriber -> its partitions as they are now, in order."""
    partitions: int
    extras: set[str]
    """Those who get one partition more than `base`."""

    @property
    def base(self) -> int:
        return self.partitions // len(self.owned)

    @property
    def extras_count(self) -> int:
        return self.partitions % len(self.owned)


def assign(
    members: Mapping[str, Collection[str]], partitions: Mapping[str, int], owners: Mapping[TopicPartition, str]
) -> dict[TopicPartition, str]:
    """Give each partition to one member.

    `members` says who subscribes to what, `partitions` how many there are by topic, and `owners` who has what now; an
    owner who is no member any more, or not subscribed, doesn't count. A topic nobody subscribes to is left out.
    """
    topics = _topics(members, partitions, owners)
    totals = {member: sum(topics[t].base for t in set(members[member]) & topics.keys()) for member in sorted(members)}
    _keep_extras(topics, totals)
    _give_extras(topics, totals)
    while path := _uneven(topics, totals):
        for giver, name, taker in path:
            topics[name].extras.remove(giver)
            topics[name].extras.add(taker)
        totals[path[0][0]] -= 1
        totals[path[-1][2]] += 1
    return {tp: member for name, topic in topics.items() for tp, member in _place(name, topic).items()}


def _topics(
    members: Mapping[str, Collection[str]], partitions: Mapping[str, int], owners: Mapping[TopicPartition, str]
) -> dict[str, _Topic]:
    topics = {}
    for name in sorted(partitions):
        owned: dict[str, list[int]] = {member: [] for member in sorted(members) if name in members[member]}
        for number in range(partitions[name]):
            owner = owners.get(TopicPartition(name, number))
            if owner in owned:
                owned[owner].append(number)
        if owned:
            topics[name] = _Topic(owned, partitions[name], set())
    return topics


def _keep_extras(topics: Mapping[str, _Topic], totals: dict[str, int]) -> None:
    """Those who have more than their base keep one extra, as many as there may be: the least burdened first."""
    for topic in topics.values():
        over = [member for member, owned in topic.owned.items() if len(owned) > topic.base]
        for member in sorted(over, key=totals.__getitem__)[: topic.extras_count]:
            topic.extras.add(member)
            totals[member] += 1


def _give_extras(topics: Mapping[str, _Topic], totals: dict[str, int]) -> None:
    for topic in topics.values():
        without = [member for member in topic.owned if member not in topic.extras]
        for member in sorted(without, key=totals.__getitem__)[: topic.extras_count - len(topic.extras)]:
            topic.extras.add(member)
            totals[member] += 1


def _uneven(topics: Mapping[str, _Topic], totals: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """How one who has at least two more than another can give him one: (giver, topic, taker) steps, the fewest."""
    least = min(totals.values(), default=0)
    for start in sorted(totals, key=lambda member: -totals[member]):
        if totals[start] < least + 2:
            break
        reached: dict[str, list[tuple[str, str, str]]] = {start: []}
        waiting = deque([start])
        while waiting:
            giver = waiting.popleft()
            for name, topic in topics.items():
                if giver not in topic.extras:
                    continue
                for taker in topic.owned:
                    if taker in topic.extras or taker in reached:
                        continue
                    reached[taker] = [*reached[giver], (giver, name, taker)]
                    if totals[taker] <= totals[start] - 2:
                        return reached[taker]
                    waiting.append(taker)
    return []


def _place(name: str, topic: _Topic) -> dict[TopicPartition, str]:
    """Everyone keeps what is his up to his share; what is then free fills the shares."""
    placed = {}
    lacking = []
    for member, owned in topic.owned.items():
        share = topic.base + (member in topic.extras)
        placed.update(dict.fromkeys(owned[:share], member))
        lacking += [member] * (share - len(owned))
    free = [number for number in range(topic.partitions) if number not in placed]
    placed.update(zip(free, lacking, strict=True))
    return {TopicPartition(name, number): placed[number] for number in sorted(placed)}
