"""The ladder on which invocations wait until they are due. Pure.

Each rung is a topic, `__taskq.delay.<seconds>`, in which everything waits equally long, so that what came first is due
first: whoever moves it looks only at the head of the topic's partitions and keeps nothing in memory. An invocation
enters on the highest rung that is not longer than what is left of its delay, and when it has waited there, it steps
down to the next one, until it is due. What is due within a second is on the lowest rung, 0, or about to leave another:
that is the only thing that movers hold (`taskq.worker.delays`).

A record on the ladder carries when it is due and where it goes then in its headers (`taskq.trip`).
"""

from __future__ import annotations

from typing import Final

from taskq.broker.port import Message
from taskq.topics import DELAY
from taskq.trip import DUE, TO, with_header

RUNGS_S: Final = (0, *(4**power for power in range(10)))
"""0, 1, 4, 16, 64, ... seconds; the highest is three days."""

TOPICS: Final = tuple(f"{DELAY}{rung}" for rung in RUNGS_S)


def rung_s(topic: str) -> int:
    """How long a rung is, by its topic."""
    return int(topic[len(DELAY) :])


def topic_for(left_ms: int) -> str:
    """The rung for what is due in so many milliseconds."""
    return TOPICS[max(index for index, rung in enumerate(RUNGS_S) if rung * 1000 <= max(0, left_ms))]


def delayed(message: Message, topic: str, due_ms: int, now_ms: int) -> tuple[str, Message]:
    """Where to publish `message` now, for it to come to `topic` when it is due; and as what."""
    headers = with_header(with_header(message.headers, DUE, b"%d" % due_ms), TO, topic.encode())
    return topic_for(due_ms - now_ms), Message(message.value, message.key, headers)
