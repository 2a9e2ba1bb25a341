"""Commands with a Kafka behind them, where it tells less than a log of ours, or keeps less."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskq import TaskQ
from tests.cli.conftest import Taskq
from tests.kafka.cluster import Cluster


@pytest.fixture
def url(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty Kafka, which all commands use."""
    kafka.reset()
    url = f"kafka://{kafka.bootstrap}"
    monkeypatch.setenv("TASKQ_BROKER", f"{url}?sasl.password=geheim")
    return url


def test_what_kafka_does_not_tell_is_a_dash(taskq: Taskq, url: str):
    assert taskq("topics", "create", "posts", "--set", "retention_ms=12h").code == 0
    assert taskq("topics", "list").table == [["TOPIC", "PARTITIONS", "RECORDS", "BYTES"], ["posts", "2", "0", "-"]]
    described = taskq("topics", "describe", "posts", "--json").json
    assert [row["bytes"] for row in described["partitions"]] == [None, None]
    assert described["settings"]["retention_ms"] == 43_200_000
    assert taskq("topics", "describe", "posts").code == 0


def test_others_topics_may_have_policies_that_ours_have_not(taskq: Taskq, url: str, kafka: Cluster):
    kafka.tool(*"kafka-topics --create --topic theirs --partitions 1 --config cleanup.policy=compact,delete".split())
    assert [row["topic"] for row in taskq("topics", "list", "--json").json] == ["theirs"]
    assert taskq("topics", "describe", "theirs", "--json").json["settings"]["cleanup_policy"] == "compact"


@pytest.mark.parametrize("command", [["log", "verify"], ["log", "dump"]])
def test_there_are_no_files_to_look_into(taskq: Taskq, url: str, command: list[str]):
    said = taskq(*command)
    assert said.code == 2
    assert f"the broker {url} has no files to look into" in said.err
    assert "geheim" not in said.err


@pytest.mark.parametrize("setting", ["retention_ms=30d", "retention_bytes=1GiB"])
def test_dead_letters_are_kept_where_nobody_asks_whether_they_are_resolved(
    taskq: Taskq, url: str, tmp_path: Path, setting: str
):
    with TaskQ("test") as app:
        app.producer.send("post.dead", b"")
    said = taskq("topics", "alter", "post.dead", "--set", setting)
    assert (said.code, "'post.dead' can't have a retention on Kafka" in said.err) == (2, True)
    assert taskq("topics", "describe", "post.dead", "--json").json["settings"]["retention_ms"] == -1
    name, _, value = setting.partition("=")
    (tmp_path / "pyproject.toml").write_text(f"[tool.taskq.topics.'post.dead']\n{name} = '{value}'\n")
    said = taskq("topics", "list")
    assert (said.code, "'post.dead' can't have a retention on Kafka" in said.err) == (2, True)
