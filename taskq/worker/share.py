"""A worker's part of what its whole group may do."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from taskq.broker.port import Broker
from taskq.errors import BrokerUnavailable, TopicNotFound

AGAIN_S = 5.0
"""How soon to ask again what could not be answered: whoever asks waits for it."""

_log = logging.getLogger("taskq.worker")


class Share:
    """What is limited may be in a partition of any of the group's topics, by an event or `options(topic=)`, and each is
    divided evenly: so the part is that of the partitions held. They are counted when it is asked for after `recount`.
    """

    def __init__(self, broker: Broker, group: str, topics: Sequence[str]) -> None:
        self._count_partitions = broker.admin().partitions
        self._group = group
        self._topics = topics
        self._partitions = 0
        self._is_counted = False
        self._count_at = 0.0

    def recount(self) -> None:
        """There may be more or fewer."""
        self._is_counted = False

    def of(self, held: int) -> float:
        """The part of who holds so many: 1 if they are all, or all that is known."""
        now = time.monotonic()
        if not self._is_counted and now >= self._count_at:
            try:
                self._partitions = sum(map(self._count, self._topics))
                self._is_counted = True
            except BrokerUnavailable as error:  # as many as before, most likely
                self._count_at = now + AGAIN_S
                _log.warning("how many partitions group %s has can't be asked now: %s", self._group, error)
        return held / max(1, self._partitions, held)

    def _count(self, topic: str) -> int:
        try:
            return self._count_partitions(topic)
        except TopicNotFound:  # deleted: whoever publishes makes it anew
            return 0
