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


def owners(here: Bench, group: str = "feed") -> dict[str, list[str]]:
    """For each topic whose partitions members of the group hold, those members, as the group knows it."""
    with TaskQ("looks", broker=here.broker) as app:
        found: dict[str, list[str]] = {}
        for tp, owner in app.broker.admin().describe_group(group).owners.items():
            found.setdefault(tp.topic, []).append(owner)
        return found


def wait_for_share(here: Bench, workers: int = 2, total: int = 32) -> None:
    """Until so many hold equally many of the partitions of each topic (tests.apps.audit: four topics of eight)."""

    def are_shared() -> bool:
        found = owners(here).values()
        return sum(map(len, found)) == total and all(
            list(Counter(members).values()) == [len(members) // workers] * workers for members in found
        )

    until(are_shared, f"{workers} share the partitions of each topic")


def finished(here: Bench, within_s: float = 30.0, group: str = "feed") -> None:
    """Until the group has finished all."""
    until(lambda: here.unfinished(group) == 0, "all is finished", within_s)
