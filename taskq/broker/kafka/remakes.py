"""Notices topics that were deleted and made anew.

Whoever reads one goes on at the offset where it was, in another log, and what comes before that in it would be lost.
Brokers give every topic an id of its own (since Kafka 2.8), so that is asked for now and then, without waiting. It is
committed beside what was finished, too: an offset of a topic that is no more means nothing in the one of that name.
"""

# What the client's documentation imports from confluent_kafka.admin is not re-exported as type checkers want it.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Final

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription

ID_LENGTH: Final = 22

LOOK_S: Final = 60.0
"""How often to ask. While a broker is away, librdkafka takes a processor for each question to it, for seconds."""

SOON_S: Final = 10.0
"""How soon to ask for the id of a topic of which none is known."""


_NONE: Final = "A" * ID_LENGTH
"""Said by brokers that give topics no ids."""


def id_of(topic: TopicDescription) -> str | None:
    """As text: two of the same are not equal by themselves. None if the brokers give it none."""
    ident = str(topic.topic_id)
    return None if ident == _NONE else ident


class Remakes:
    """Threads share it."""

    def __init__(self, client: Callable[[], AdminClient]) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        self._asked: dict[str, Future[TopicDescription]] = {}
        self._asked_at = -SOON_S

    def look(self, now: float, topics: Collection[str]) -> list[str]:
        """Those of `topics` that are others than when this was asked before. `now` is monotonic. Does not wait."""
        if not topics or not self._lock.acquire(blocking=False):
            return []
        try:
            if self._asked:
                return self._answers() if all(one.done() for one in self._asked.values()) else []
            if now >= self._asked_at + (LOOK_S if self._knows(topics) else SOON_S):
                self._asked_at = now
                self._ids = {topic: ident for topic, ident in self._ids.items() if topic in topics}
                self._asked = dict(self._client().describe_topics(TopicCollection(list(topics))))
            return []
        finally:
            self._lock.release()

    def learn(self, topic: str, ident: str | None) -> None:
        """Somebody has just asked. If it is another than before, `look` is what tells, soon."""
        with self._lock:
            if ident is not None and self._ids.setdefault(topic, ident) != ident:
                self._asked_at = -LOOK_S

    def id_of(self, topic: str) -> str | None:
        """As far as it is known."""
        return self._ids.get(topic)

    def _knows(self, topics: Collection[str]) -> bool:
        return all(topic in self._ids for topic in topics)

    def _answers(self) -> list[str]:
        changed = []
        for topic, future in self._asked.items():
            if future.exception() is not None:  # deleted, or brokers are away
                continue
            ident = id_of(future.result())
            if ident is None:
                continue
            before = self._ids.get(topic)
            if before is not None and before != ident:
                changed.append(topic)
            self._ids[topic] = ident
        self._asked = {}
        return changed
