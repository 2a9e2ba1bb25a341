"""`taskq topics` where it changes something: settings, more partitions, deleting."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskq import TaskQ
from tests.cli.conftest import Taskq


def test_settings_are_set_shown_and_altered(taskq: Taskq):
    assert taskq("topics", "create", "posts", "--set", "retention_ms=12h", "--set", "segment_bytes=64MiB").code == 0
    settings = taskq("topics", "describe", "posts", "--json").json["settings"]
    assert (settings["retention_ms"], settings["segment_bytes"]) == (43_200_000, 64 << 20)
    said = taskq("topics", "alter", "posts", "--partitions", "5", "--set", "retention_ms=-1")
    assert (said.code, said.out) == (0, "posts: 5 partitions, retention_ms=-1\n")
    described = taskq("topics", "describe", "posts", "--json").json
    assert len(described["partitions"]) == 5
    assert (described["settings"]["retention_ms"], described["settings"]["segment_bytes"]) == (-1, 64 << 20)
    assert "retention_ms" in taskq("topics", "describe", "posts").out


def test_what_makes_no_sense_is_a_usage_error(taskq: Taskq):
    taskq("topics", "create", "posts", "--partitions", "2")
    for arguments in (["--set", "retention=1"], ["--set", "retention_ms"], ["--partitions", "1"], []):
        assert taskq("topics", "alter", "posts", *arguments).code == 2
    assert taskq("topics", "create", "__taskq.mine").code == 2
    assert taskq("topics", "alter", "nothing", "--partitions", "3").code == 1
    assert taskq("topics", "delete", "nothing", "--yes").code == 1
    assert [row["topic"] for row in taskq("topics", "list", "--json").json] == ["posts"]


@pytest.mark.parametrize(
    ("topic", "setting"),
    [
        ("post.dead", "cleanup_policy=compact"),
        ("post.retry", "cleanup_policy=compact"),
        ("__taskq.control", "cleanup_policy=compact"),
        ("post.dead", "unfinished=delete"),
    ],
)
def test_nothing_is_set_that_loses_what_only_a_person_may_let_go(
    taskq: Taskq, tmp_path: Path, topic: str, setting: str
):
    with TaskQ("test", broker=tmp_path / ".taskq") as app:
        app.producer.send(topic, b"")
    before = taskq("topics", "describe", topic, "--json").json
    said = taskq("topics", "alter", topic, "--set", setting)
    assert (said.code, f"'{topic}' can't " in said.err) == (2, True)
    assert taskq("topics", "create", topic, "--set", setting).code == 2
    assert taskq("topics", "describe", topic, "--json").json == before
    assert taskq("topics", "alter", topic, "--set", "retention_ms=30d").code == 0
    name, _, value = setting.partition("=")
    (tmp_path / "pyproject.toml").write_text(f"[tool.taskq.topics.'{topic}']\n{name} = '{value}'\n")
    said = taskq("topics", "list")
    assert (said.code, f"'{topic}' can't " in said.err) == (2, True)


def test_deleting_says_what_goes_and_asks(taskq: Taskq):
    taskq("topics", "create", "posts", "--partitions", "2")
    said = taskq("topics", "delete", "posts")
    assert said.code == 2
    assert "topic posts with 0 records (no group has worked on it). Say --yes" in said.err
    assert taskq("topics", "delete", "posts", "--yes").out.startswith("deleted topic posts")
    assert taskq("topics", "list", "--json").json == []
