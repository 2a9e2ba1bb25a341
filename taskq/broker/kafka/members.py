"""What a consumer is to its group: one member for each of its topics, nearly.

A group led by its members, as before Kafka 4, gives each of them about as many partitions, whatever their topic: of two
workers that read `feed` and `feed.retry` one may get all of `feed`, and the other what nobody is busy with. Among
members with one topic each, every topic is shared evenly. Each costs a client and some connections. So all that is
seldom used has one member together, and there are no more than SHARES_MAX of the others.

The newer protocol has brokers that divide each topic by itself: there one member is enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import Conf
from taskq.broker.kafka.member import COMMIT_S, Member, Owner
from taskq.broker.kafka.stats import Stats
from taskq.broker.port import TopicPartition
from taskq.errors import BrokerError
from taskq.topics import INTERNAL, RETRY

SHARES_MAX: Final = 8

SHARED_COMMIT_S: Final = 1.0
"""How long one of several members has for a commit."""

COMMIT_LATE_S: Final = 1.0
"""How long to wait for what a member has to say when that is over."""


def shares(topics: Sequence[str]) -> list[tuple[str, ...]]:
    """Which topics to be a member for together. The same for all who have the same topics, in whatever order."""
    aside = sorted(topic for topic in topics if topic.endswith(RETRY) or topic.startswith(INTERNAL))
    own = sorted(set(topics).difference(aside))
    divided = [tuple(own[first::SHARES_MAX]) for first in range(min(len(own), SHARES_MAX))]
    return [*divided, tuple(aside)] if aside else divided


class Members:
    """See `Member`, whose methods these are."""

    def __init__(self, conf: Conf, group: str, topics: Sequence[str], owner: Owner, stats: Stats) -> None:
        divided = shares(topics) if conf.is_classic else [tuple(topics)]
        self._members: list[Member] = []
        self._of: dict[str, Member] = {}
        try:
            for share in divided:
                name = f"member of {group}" if len(divided) == 1 else f"member of {group} for {share[0]}"
                self._members.append(Member(conf, group, share, owner, stats, name))
                self._of |= dict.fromkeys(share, self._members[-1])
        except BaseException:
            self.close()
            raise

    @property
    def id(self) -> str:
        """Of one of them, by which the consumer is known."""
        return next((member.id for member in self._members), "")

    @property
    def error(self) -> BrokerError | None:
        return next((member.error for member in self._members if member.error is not None), None)

    def commit(self, offsets: Sequence[KafkaPartition]) -> set[TopicPartition]:
        """All at once; return what is not ours any more. The first error is raised when all have ended.

        One of several is not waited for long. A member that joins anew, as all do when somebody comes or goes, hears
        nothing else until all have; and all may wait for another one of ours, whose owner stands here.
        """
        wait_s = COMMIT_S if len(self._members) == 1 else SHARED_COMMIT_S
        until = time.monotonic() + wait_s + COMMIT_LATE_S
        parts: dict[Member, list[KafkaPartition]] = {}
        for one in offsets:
            parts.setdefault(self._of[one.topic], []).append(one)
        begun = [(member, member.begin_commit(part)) for member, part in parts.items()]
        errors: list[BrokerError] = []
        missed: set[TopicPartition] = set()
        for member, commit in begun:
            try:
                missed |= member.finish_commit(commit, until)
            except BrokerError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return missed

    def leave(self) -> None:
        for member in self._members:
            member.leave()

    def look(self) -> None:
        for member in self._members:
            member.look()

    def close(self) -> None:
        for member in self._members:
            member.begin_close()
        for member in self._members:
            member.close()
