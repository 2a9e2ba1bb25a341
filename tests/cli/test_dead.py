"""`taskq dead` on a real log, and once with workers as processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from taskq.broker import connect
from taskq.broker.port import Broker, Message, Record, TopicPartition
from taskq.config import load_settings
from taskq.trip import PastError, Trip, trip_of, with_trip
from taskq.worker.deadletters import dead_letter
from taskq.worker.deadoffice import RESOLVED, _Office
from taskq.worker.retries import Failure
from tests.cli.conftest import Taskq
from tests.cli.processes import Process
from tests.processes import wait_until
from tests.worker.letters import FEED, bury, letter, sent_to_retry

TIMES = [int(datetime(2026, 11, day, 9, 30, tzinfo=UTC).timestamp() * 1000) for day in (20, 21, 22)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = connect(load_settings(broker=tmp_path / ".taskq", partitions=2, environ={}))
    yield broker
    broker.close()


@pytest.fixture
def three(broker: Broker) -> Broker:
    """Three dead letters, the second of another task, the third rejected and tried before."""
    trip = Trip(attempts=2, retried=1, errors=(PastError(2, TIMES[1], "OSError", "no disk"),), origin=("posts", 1, 2))
    rejected = Failure("rejected", "Reject", "too large\nby far")
    bury(broker, [letter("a", 7, time_ms=TIMES[0]), letter("b", 8, task="shop.mail", time_ms=TIMES[1])])
    headers = with_trip((("trace", b"t\x1b[0m"),), trip)
    bury(broker, [letter("c", "x", key=b"k", headers=headers, failure=rejected, time_ms=TIMES[2])])
    return broker


def listed(taskq: Taskq, *arguments: str) -> list[str]:
    return [one["id"] for one in taskq("dead", "list", "-g", "feed", "--json", *arguments).json]


def test_a_list_is_a_table(taskq: Taskq, three: Broker):
    lines = taskq("dead", "list", "-g", "feed").out.splitlines()
    assert lines[0].split() == ["TIME", "ID", "TASK", "REASON", "ATTEMPTS", "RETRIED", "ERROR"]
    assert [line.split(maxsplit=6) for line in lines[1:]] == [
        ["2026-11-20T09:30:00.000Z", "a", "shop.pack", "failed", "0", "0", "ValueError: not 7"],
        ["2026-11-21T09:30:00.000Z", "b", "shop.mail", "failed", "0", "0", "ValueError: not 7"],
        ["2026-11-22T09:30:00.000Z", "c", "shop.pack", "rejected", "2", "1", "Reject: too large"],
    ]


def test_a_long_list_is_printed_as_it_is_read(taskq: Taskq, broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("taskq.cli.letters._PAGE", 100)
    bury(broker, [letter(f"n{number}") for number in range(250)])
    table = taskq("dead", "list", "-g", "feed").table
    assert len(table) == 253
    assert {row[1] for row in table} == {"ID", *(f"n{number}" for number in range(250))}
    assert len(listed(taskq)) == 250


def test_an_empty_list_says_so(taskq: Taskq, three: Broker):
    assert taskq("dead", "purge", "-g", "feed", "--all").code == 0
    said = taskq("dead", "list", "-g", "feed")
    assert (said.code, said.out.splitlines()[-1]) == (0, "none yet")
    assert taskq("dead", "list", "-g", "feed", "--json").json == []


def test_the_default_group_is_the_configured_one(taskq: Taskq, three: Broker, monkeypatch: pytest.MonkeyPatch):
    said = taskq("dead", "list")
    assert said.code == 1
    assert "no group 'default' has ever run on this broker; there are: feed" in said.err
    assert "did you mean feed?" in taskq("dead", "list", "-g", "fed").err
    monkeypatch.setenv("TASKQ_DEFAULT_GROUP", "feed")
    assert len(taskq("dead", "list", "--json").json) == 3


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["--task", "shop.mail"], ["b"]),
        (["--reason", "failed"], ["a", "b"]),
        (["--since", "2026-11-21T09:30Z"], ["b", "c"]),
        (["--since", "2026-11-22T10:30:00+01:00"], ["c"]),
        (["--since", "2026-11-23T12:00"], []),
        (["--since", "2026-11-18"], ["a", "b", "c"]),
        (["--since", "2026-11-21T09:30Z", "--task", "shop.pack", "--reason", "rejected"], ["c"]),
    ],
)
def test_filters(taskq: Taskq, three: Broker, filters: list[str], ids: list[str]):
    assert listed(taskq, *filters) == ids
    assert taskq("dead", "purge", "-g", "feed", "--all", "--json", *filters).json == {
        "group": "feed",
        "purged": len(ids),
    }
    assert listed(taskq) == [one for one in "abc" if one not in ids]


def test_since_may_be_how_long_ago(taskq: Taskq, broker: Broker):
    now = datetime.now(UTC)
    for name, hours in (("old", 30), ("new", 1)):
        bury(broker, [letter(name, time_ms=int((now - timedelta(hours=hours)).timestamp() * 1000))])
    assert listed(taskq, "--since", "2h") == listed(taskq, "--since", "90 m") == ["new"]
    assert listed(taskq, "--since", "2d") == listed(taskq, "--since", "1w") == ["old", "new"]
    assert listed(taskq, "--since", "5s") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--since", "yesterday"],
        ["list", "--since", "0001-01-01"],
        ["list", "--since", "2 years"],
        ["list", "--reason", "fialed"],
        ["list", "-g", "no/group"],
        ["show"],
        ["retry"],
        ["purge"],
        ["purge", "--task", "shop.pack"],
        ["retry", "a", "--all"],
        ["purge", "a", "--task", "shop.pack"],
        ["purge", "a", "--since", "2h"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(taskq: Taskq, three: Broker, arguments: list[str]):
    said = taskq("dead", *arguments, *([] if "-g" in arguments else ["-g", "feed"]))
    assert (said.code, said.out) == (2, "")
    assert listed(taskq) == ["a", "b", "c"]


def test_a_reason_that_is_none_names_near_ones(taskq: Taskq, three: Broker):
    assert "did you mean failed or died?" in taskq("dead", "list", "-g", "feed", "--reason", "fialed").err


def test_show_tells_everything(taskq: Taskq, three: Broker):
    said = taskq("dead", "show", "c", "-g", "feed")
    assert (said.code, said.err) == (0, "")
    place = taskq("dead", "list", "-g", "feed", "--json").json[2]["place"]
    partition, offset = place.split("@")
    assert said.out.splitlines() == [
        "c",
        "  task       shop.pack",
        "  reason     rejected",
        "  error      Reject: too large",
        "             by far",
        "  given up   2026-11-22T09:30:00.000Z by group feed, at feed/3 offset 17",
        "  attempts   2",
        "  retried    1",
        "  published  1970-01-01T00:15:00.000Z at posts/1 offset 2",
        f"  kept at    feed.dead/{partition} offset {offset} ({place})",
        "  key        'k'",
        "  call       shop.pack('x')  id c",
        "  headers",
        "    'trace': 't\\x1b[0m'",
        "  history",
        "    2026-11-21T09:30:00.000Z  attempt 2  OSError: no disk",
    ]
    assert "  traceback\n    Traceback ...\n    ValueError: not 7\n" in taskq("dead", "show", "a", "-g", "feed").out


def test_show_tells_programs_everything(taskq: Taskq, three: Broker):
    (found,) = taskq("dead", "show", "c", "-g", "feed", "--json").json
    assert (found["id"], found["reason"], found["message"]) == ("c", "rejected", "too large\nby far")
    assert found["errors"] == [{"attempt": 2, "time_ms": TIMES[1], "type": "OSError", "message": "no disk"}]
    assert found["headers"] == {"trace": "t\x1b[0m"}
    assert found["origin"] == {"topic": "posts", "partition": 1, "offset": 2}
    assert found["given_up_at"] == {"topic": "feed", "partition": 3, "offset": 17}
    assert found["invocation"]["args"] == ["x"]


def test_all_letters_with_an_id_are_shown(taskq: Taskq, broker: Broker):
    bury(broker, [letter("a"), letter("a")])
    assert taskq("dead", "show", "a", "-g", "feed").out.count("  given up") == 2


@pytest.mark.parametrize("action", ["retry", "purge", "show"])
def test_an_id_that_is_no_dead_letters_is_named_and_nothing_changes(taskq: Taskq, three: Broker, action: str):
    said = taskq("dead", action, *(["a"] if action != "show" else []), "z", "-g", "feed")
    assert (said.code, said.out) == (1, "")
    assert "group feed has no dead letter z" in said.err
    assert "taskq dead list -g feed" in said.err
    assert listed(taskq) == ["a", "b", "c"]


def test_retry_sends_them_again_and_counts(taskq: Taskq, three: Broker):
    said = taskq("dead", "retry", "-g", "feed", "a")
    assert (said.code, said.out, said.err) == (0, "1 dead letter of group feed retried\n", "")
    assert listed(taskq) == ["b", "c"]
    assert taskq("dead", "retry", "-g", "feed", "--all").out == "2 dead letters of group feed retried\n"
    assert sorted(trip_of(record).retried for record in sent_to_retry(three)) == [1, 1, 2]
    assert taskq("dead", "retry", "-g", "feed", "--all").out == "0 dead letters of group feed retried\n"


def test_what_is_no_invocation_is_called_by_its_place(taskq: Taskq, broker: Broker):
    record = Record(17, 900_000, b"k", b"\xff\x1b[2J", ())
    failure = Failure("unreadable", "SerializationError", "\x1b[2J\x07 is no invocation")
    bury(broker, [dead_letter("feed", "", FEED, record, failure, TIMES[0])])
    (found,) = taskq("dead", "list", "-g", "feed", "--json").json
    place = found["place"]
    assert (found["id"], place) in ((None, "0@0"), (None, "1@0"))
    said = taskq("dead", "list", "-g", "feed").out + taskq("dead", "show", place, "-g", "feed").out
    assert "\x1b" not in said
    assert "  value      b'\\xff\\x1b[2J'" in said
    assert "SerializationError: \\x1b[2J\\x07 is no invocation" in said
    assert taskq("dead", "purge", "-g", "feed", place).out == "1 dead letter of group feed purged\n"


def test_many_show_progress_on_a_terminal(taskq: Taskq, three: Broker, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    monkeypatch.setattr("taskq.cli.dead._PROGRESS_MIN", 3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progressbar = click.progressbar

    def watched(**options: object) -> object:
        shown.append(options["length"] if not options["hidden"] else 0)  # type: ignore[arg-type]
        return progressbar(**options)  # type: ignore[call-overload]

    monkeypatch.setattr(click, "progressbar", watched)
    assert taskq("dead", "retry", "-g", "feed", "a").code == 0
    assert taskq("dead", "purge", "-g", "feed", "--all").code == 0
    assert shown == [3, 0]


def test_who_is_at_it_is_named(taskq: Taskq, three: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("taskq.worker.deadoffice.WAIT_S", 0.1)
    other = three.consumer(RESOLVED, ["feed.dead"])
    wait_until(lambda: other.poll(0.1).assigned, "it holds all")
    said = taskq("dead", "purge", "-g", "feed", "--all")
    other.close()
    assert said.code == 1
    assert f"feed.dead is being worked on by {other.member_id}" in said.err


def test_what_was_done_before_it_failed_is_told(taskq: Taskq, three: Broker, monkeypatch: pytest.MonkeyPatch):
    from taskq.broker.embedded import EmbeddedProducer
    from taskq.errors import StorageFull

    send_many, sent = EmbeddedProducer.send_many, [0]

    def fails(producer: EmbeddedProducer, topic: str, messages: list[Message]) -> None:
        sent[0] += 1
        if sent[0] == 2:
            raise StorageFull("the disk is full")
        send_many(producer, topic, messages)

    monkeypatch.setattr("taskq.worker.deadoffice.BATCH_MAX", 1)
    monkeypatch.setattr(EmbeddedProducer, "send_many", fails)
    said = taskq("dead", "retry", "-g", "feed", "--all")
    assert said.code == 1
    assert said.err == "1 dead letter of group feed retried before this:\ntaskq: error: the disk is full\n"
    assert len(listed(taskq)) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
@pytest.mark.parametrize(
    ("action", "chosen"),
    [("retry", ["--all"]), ("retry", list("abcdef")), ("purge", ["--all"]), ("purge", ["--all", "--reason", "failed"])],
)
def test_who_is_interrupted_ends_the_batch_in_hand_and_says_how_many(
    taskq: Taskq,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    action: str,
    chosen: list[str],
):
    bury(broker, [letter(name, key=name.encode()) for name in "abcdef"])  # in both partitions
    commit = _Office._commit

    def commit_interrupted(office: _Office, tp: TopicPartition) -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)  # an echo
        commit(office, tp)

    monkeypatch.setattr("taskq.worker.deadoffice.BATCH_MAX", 2)
    monkeypatch.setattr(_Office, "_commit", commit_interrupted)
    said = taskq("dead", action, "-g", "feed", *chosen)
    count = 6 - len(listed(taskq))
    assert 0 < count < 6
    assert len(sent_to_retry(broker)) == (count if action == "retry" else 0)
    done = {"retry": "retried", "purge": "purged"}[action]
    assert (said.code, said.out) == (code, "")
    assert said.err == f"{count} dead letters of group feed {done}; interrupted, run it again for the rest\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_or_insists_is_interrupted_at_once(
    taskq: Taskq, three: Broker, monkeypatch: pytest.MonkeyPatch, number: int
):
    def interrupted(*_: object) -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        pytest.fail("it goes on")

    code = 130 if number == signal.SIGINT else 1
    monkeypatch.setattr("taskq.cli.interrupts.SIGNAL_ECHO_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(_Office, "_commit", interrupted)
        said = taskq("dead", "retry", "-g", "feed", "--all")
        assert (said.code, said.out) == (code, "")
        assert said.err == "at least 0 dead letters of group feed retried; interrupted, run it again for the rest\n"
    monkeypatch.setattr("taskq.worker.holding._take_all", lambda *_: signal.raise_signal(number))
    said = taskq("dead", "purge", "-g", "feed", "--all")
    assert (said.code, said.out) == (code, "")
    assert said.err == "0 dead letters of group feed purged; interrupted, run it again for the rest\n"


def test_the_group_that_keeps_count_of_it_is_no_group_of_workers(taskq: Taskq, three: Broker):
    taskq("dead", "purge", "-g", "feed", "a")
    assert RESOLVED in three.admin().groups()
    assert taskq("groups", "list", "--json").json == []


TASKS = """
import os
from taskq import Retry, current, task

@task(name="mail.send", topic="mail", group="post", retry=Retry(1, base=0.01))
def send(n: int) -> None:
    if not os.path.exists("mended"):
        raise OSError("no way out")
    print(f"sent {n} {current.id} attempt {current.attempt} retried {current.retried}", flush=True)
"""


@pytest.fixture
def start(taskq: Taskq, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    (tmp_path / "mail.py").write_text(TASKS)
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\napp = 'mail'\npartitions = 4\n")
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(*arguments, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_what_failed_runs_once_its_cause_is_mended(start: Callable[..., Process], taskq: Taskq, tmp_path: Path):
    worker = start("worker", "-g", "post", "-p", "2", "--metrics-port", "0")
    sent = start("send", "mail.send", "--args", "[7]")
    assert sent.end() == 0
    ident = sent.said.strip()
    worker.wait_for(r"is a dead letter")
    worker.wait_for_metric("taskq_dead_letters", 1, group="post")
    (found,) = taskq("dead", "list", "-g", "post", "--json").json
    assert (found["id"], found["task"], found["reason"], found["attempts"]) == (ident, "mail.send", "failed", 2)
    assert "OSError: no way out" in taskq("dead", "show", "-g", "post", ident).out

    (tmp_path / "mended").touch()
    assert taskq("dead", "retry", "-g", "post", ident).out == "1 dead letter of group post retried\n"
    worker.wait_for(f"sent 7 {ident} attempt 1 retried 1")
    worker.wait_for_metric("taskq_dead_letters", 0, group="post")
    assert taskq("dead", "list", "-g", "post", "--json").json == []
