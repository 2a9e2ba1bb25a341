"""`taskq topics` and `taskq groups` on a real log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskq.broker import connect
from taskq.broker.port import Broker, Committed, Message, TopicPartition
from taskq.config import load_settings
from taskq.worker.progress import Progress
from tests.cli.conftest import Taskq


@pytest.fixture
def broker(tmp_path: Path):
    broker = connect(load_settings(broker=tmp_path / ".taskq", partitions=2, environ={}))
    yield broker
    broker.close()


def work_on(broker: Broker, group: str, topic: str) -> str:
    """Join, finish the first two records of partition 0 and the fourth, and stay; return the member's id."""
    broker.producer().send_many(topic, [Message(b"x", key=b"to-one-partition")] * 5)
    consumer = broker.consumer(group, [topic])
    while not consumer.poll(5).assigned:
        pass
    reader = broker.reader()
    (tp,) = [tp for tp in (TopicPartition(topic, 0), TopicPartition(topic, 1)) if reader.bounds(tp).end]
    progress = Progress(0)
    progress.finish([0, 1, 3])
    consumer.commit({tp: Committed(progress.low, progress.encode())})
    return consumer.member_id


def test_a_created_topic_is_listed(taskq: Taskq):
    assert taskq("topics", "create", "posts", "--partitions", "3").code == 0
    assert taskq("topics", "list", "--json").json == [{"topic": "posts", "partitions": 3, "records": 0, "bytes": 0}]


def test_a_topic_gets_the_configured_number_of_partitions(taskq: Taskq, tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\npartitions = 5\n[tool.taskq.topics.big]\npartitions = 32\n")
    assert taskq("topics", "create", "posts").out == "posts: 5 partitions\n"
    assert taskq("topics", "create", "big").out == "big: 32 partitions\n"


def test_a_topic_that_exists_is_not_created_again(taskq: Taskq):
    taskq("topics", "create", "posts")
    said = taskq("topics", "create", "posts")
    assert said.code == 2
    assert "exists" in said.err


@pytest.mark.parametrize("arguments", [("a/b",), ("posts", "--partitions", "0"), ("posts", "--partitions", "many"), ()])
def test_a_topic_that_cannot_be_is_a_usage_error(taskq: Taskq, arguments: tuple[str, ...]):
    assert taskq("topics", "create", *arguments).code == 2
    assert taskq("topics", "list", "--json").json == []


def test_records_and_bytes_are_counted(taskq: Taskq, broker: Broker):
    broker.producer().send_many("posts", [Message(b"x" * 100)] * 10)
    (row,) = taskq("topics", "list", "--json").json
    assert (row["topic"], row["partitions"], row["records"]) == ("posts", 2, 10)
    assert row["bytes"] > 1000
    described = taskq("topics", "describe", "posts", "--json").json
    assert described["topic"] == "posts"
    assert [part["partition"] for part in described["partitions"]] == [0, 1]
    assert sum(part["records"] for part in described["partitions"]) == 10
    assert sum(part["bytes"] for part in described["partitions"]) == row["bytes"]


def test_tables_are_aligned_under_their_headings(taskq: Taskq, broker: Broker):
    broker.producer().send_many("a-topic-with-a-long-name", [Message(b"x")] * 10)
    taskq("topics", "create", "b", "--partitions", "1")
    lines = taskq("topics", "list").out.splitlines()
    assert lines[0].split() == ["TOPIC", "PARTITIONS", "RECORDS", "BYTES"]
    assert [line.split()[:3] for line in lines[1:]] == [["a-topic-with-a-long-name", "2", "10"], ["b", "1", "0"]]
    assert lines[1].index("2") == lines[2].index("1") == lines[0].index("PARTITIONS") + len("PARTITIONS") - 1


def test_an_unknown_topic_names_near_ones(taskq: Taskq):
    taskq("topics", "create", "posts")
    said = taskq("topics", "describe", "post")
    assert said.code == 1
    assert said.err == "taskq: error: there is no topic 'post'; did you mean posts?\n"


def test_a_group_shows_its_progress(taskq: Taskq, broker: Broker):
    member = work_on(broker, "feed", "posts")
    (row,) = taskq("groups", "list", "--json").json
    assert row == {"group": "feed", "members": 1, "topics": ["posts"], "backlog": 2}
    described = taskq("groups", "describe", "feed", "--json").json
    assert described["members"] == [{"member": member, "topics": ["posts"]}]
    (part,) = [part for part in described["partitions"] if part["end"]]
    assert (part["committed"], part["finished_above"], part["end"], part["backlog"]) == (2, 1, 5, 2)
    assert part["member"] == member
    assert part["age_seconds"] >= 0
    (idle,) = [part for part in described["partitions"] if not part["end"]]
    assert (idle["committed"], idle["backlog"], idle["age_seconds"]) == (None, 0, 0)


def test_a_group_is_a_table_too(taskq: Taskq, broker: Broker):
    work_on(broker, "feed", "posts")
    assert taskq("groups", "list").table == [["GROUP", "MEMBERS", "BACKLOG", "TOPICS"], ["feed", "1", "2", "posts"]]
    said = taskq("groups", "describe", "feed")
    assert said.out.startswith("feed: 1 member\n\nTOPIC  PARTITION  COMMITTED")


def test_an_unknown_group_names_near_ones(taskq: Taskq, broker: Broker):
    work_on(broker, "feed", "posts")
    said = taskq("groups", "describe", "fede")
    assert said.code == 1
    assert "did you mean feed?" in said.err


def test_what_waits_for_a_group_that_never_ran_is_shown_with_its_app(taskq: Taskq, tmp_path: Path):
    (tmp_path / "shop.py").write_text(
        "from taskq import task\n@task(topic='mail', group='post')\ndef send(n: int) -> None: ...\n"
    )
    assert taskq("send", "shop.send", "--args", "[1]", "-A", "shop").code == 0
    assert taskq("groups", "describe", "post").code == 1
    said = taskq("groups", "describe", "post", "-A", "shop", "--json")
    assert sum(part["backlog"] for part in json.loads(said.out)["partitions"]) == 1


def test_an_empty_list_says_so(taskq: Taskq):
    assert "none yet" in taskq("groups", "list").out


def test_taskqs_own_are_listed_when_all_are_asked_for(taskq: Taskq, broker: Broker):
    work_on(broker, "feed", "posts")
    work_on(broker, "__taskq.delays", "__taskq.delay.1")
    for what, own, name in (("groups", "__taskq.delays", "feed"), ("topics", "__taskq.delay.1", "posts")):
        assert [row[what[:-1]] for row in taskq(what, "list", "--json").json] == [name]
        assert {row[what[:-1]] for row in taskq(what, "list", "--all", "--json").json} == {own, name}
