"""Looking at groups from outside. A question to Kafka takes its time, so waiting goes by the clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from taskq import TaskQ
from tests.kafka.cluster import wait
from tests.processes import Bench


def until(condition: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    """Fail with `what` unless `condition()` comes true in time."""
    assert wait(lambda: bool(condition()), within_s), f"not within {within_s} s: {what}"


def held(here: Bench, group: str = "feed") -> Counter[str]:
    """How many partitions, of all topics, each member holds, as the group knows it."""
    with TaskQ("looks", broker=here.broker) as app:
        return Counter(app.broker.admin().describe_group(group).owners.values())


def wait_for_share(here: Bench, members: int = 2, total: int = 32) -> None:
    """Until so many members hold equally many of the partitions (tests.apps.audit: four topics of eight)."""
    until(lambda: list(held(here).values()) == [total // members] * members, f"{members} share all partitions")


def finished(here: Bench, within_s: float = 30.0, group: str = "feed") -> None:
    """Until the group has finished all."""
    until(lambda: here.unfinished(group) == 0, "all is finished", within_s)
