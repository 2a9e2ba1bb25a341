"""What Kafka's own tools say and what taskq says of the same are the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from taskq import TaskQ
from taskq.broker import connect
from taskq.config import load_settings
from taskq.exporter import PartitionBacklog, describe_group, partition_backlogs, topics_of
from tests.cli.conftest import Taskq, taskq
from tests.kafka.cluster import Cluster
from tests.kafka.looking import until
from tests.kafka.tools import ToolFailed
from tests.kafka.urls import url
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working

__all__ = ["taskq"]


def table(said: str) -> list[dict[str, str]]:
    """The rows of a tool that prints a table, by its headings."""
    lines = [line.split() for line in said.splitlines() if line.strip()]
    start = next(index for index, line in enumerate(lines) if line[0] == "GROUP")
    return [dict(zip(lines[start], line, strict=False)) for line in lines[start + 1 :]]


@pytest.fixture
def blocked(app: TaskQ) -> Iterator[threading.Event]:
    """A group that has finished a hundred, and of ten more nothing, since its worker is busy until this is set."""
    gate, ran = threading.Event(), []

    @app.task(topic="feed", order="partition")
    def note(number: int) -> None:
        if number >= 100:
            gate.wait(WAIT_S)
        ran.append(number)

    note.map([(number,) for number in range(100)])
    with working(app, concurrency=16) as worker:
        wait_until(lambda: len(ran) == 100, "they have run")
        wait_finished(worker)
        note.options(key="same").map([(number,) for number in range(100, 110)])
        wait_until(lambda: sum(one[1][0] for one in worker.metrics_snapshot()["taskq_running"]) == 1, "one runs")
        yield gate
        gate.set()
        wait_finished(worker)


def test_groups_are_described_alike(empty: Cluster, blocked: threading.Event, taskq: Taskq) -> None:
    ours = taskq("groups", "describe", "default", "--broker", url(empty), "--json").json
    theirs = table(empty.tool("kafka-consumer-groups", "--describe", "--group", "default"))
    by_place = {(row["TOPIC"], int(row["PARTITION"])): row for row in theirs}
    rows = {(row["topic"], row["partition"]): row for row in ours["partitions"]}
    assert by_place.keys() == rows.keys()
    for place, row in rows.items():
        told = by_place[place]
        committed = None if told["CURRENT-OFFSET"] == "-" else int(told["CURRENT-OFFSET"])
        assert (row["committed"], row["end"]) == (committed, int(told["LOG-END-OFFSET"]))
        assert row["backlog"] == int(told["LAG"]), "nothing is finished above: their lag is our backlog"
        assert row["member"] == told["CONSUMER-ID"]
    assert {row["backlog"] for row in rows.values()} == {0, 10}
    members = {tuple(member["topics"]): member["member"] for member in ours["members"]}
    assert members.keys() == {("default.retry",), ("feed",)}, "the worker has one for each topic"
    assert set(members.values()) == {row["CONSUMER-ID"] for row in theirs}


def test_the_exporter_sees_backlog_and_age(empty: Cluster, blocked: threading.Event) -> None:
    broker = connect(load_settings(broker=url(empty)))
    try:

        def parts() -> list[PartitionBacklog]:
            group = describe_group(broker.admin(), "default")
            return partition_backlogs(broker.admin(), broker.reader(), group, topics_of(group))

        assert sum(part.backlog for part in parts()) == 10
        (old,) = [part for part in parts() if part.backlog]
        first = old.age_seconds(time.time())
        assert first is not None
        assert 0 < first < WAIT_S
        blocked.set()
        until(lambda: sum(part.backlog for part in parts()) == 0, "the backlog is gone")
        assert {part.age_seconds(time.time()) for part in parts()} == {0.0}
    finally:
        broker.close()


def test_topics_are_created_as_told(empty: Cluster, taskq: Taskq) -> None:
    common = ("--broker", url(empty))
    said = taskq(
        *("topics", "create", "posts", "--partitions", "3", "--replication", "1"),
        *("--set", "retention_ms=7d"),
        *common,
    )
    assert said.code == 0, said.err
    told = empty.tool("kafka-topics", "--describe", "--topic", "posts")
    assert "PartitionCount: 3" in told
    assert "ReplicationFactor: 1" in told
    assert "retention.ms=604800000" in told
    assert taskq("topics", "create", "again", "--replication", "3", *common).code != 0, "there is one node"
    with pytest.raises(ToolFailed):
        empty.tool("kafka-topics", "--describe", "--topic", "again")


def test_a_topic_that_exists_stays_as_it_is(empty: Cluster) -> None:
    """Whatever is configured: somebody has made it so."""
    config = "retention.ms=12345678"
    empty.tool("kafka-topics", "--create", "--topic", "feed", "--partitions", "3", "--config", config)
    before = empty.tool("kafka-topics", "--describe", "--topic", "feed")
    ran: list[int] = []
    with TaskQ("test", broker=url(empty)) as app:

        @app.task(topic="feed")
        def note(number: int) -> None:
            ran.append(number)

        app.configure(partitions=8)
        note.map([(number,) for number in range(20)])
        with working(app) as worker:
            wait_until(lambda: len(ran) == 20, "they have run")
            wait_finished(worker)
        assert app.broker.admin().describe_topic("feed").settings.retention_ms == 12345678
    assert empty.tool("kafka-topics", "--describe", "--topic", "feed") == before
