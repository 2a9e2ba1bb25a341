"""Guarantee 7: a record that can't be decoded, verified or matched to a task becomes a dead letter with the reason; the
partition goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import Bench, bench, metric, wait_until

BAD = {
    "not an invocation": (b"\x00\xff garbage", "unreadable"),
    "empty": (b"", "unreadable"),
    "an unknown task": (b'{"task": "tests.apps.audit.nope", "args": [1]}', "unknown-task"),
    "too few arguments": (b'{"task": "tests.apps.audit.note", "args": []}', "arguments"),
    "an argument of a wrong type": (b'{"task": "tests.apps.audit.note", "args": ["x"]}', "arguments"),
    "an argument of a wrong name": (b'{"task": "tests.apps.audit.note", "kwargs": {"nr": 1}}', "arguments"),
}


def send_raw(here: Bench, value: bytes) -> None:
    here.app.broker.producer().send("feed", value, b"same")


@pytest.mark.parametrize("what", BAD)
def test_what_can_not_be_run_is_a_dead_letter_and_the_partition_goes_on(tmp_path: Path, what: str) -> None:
    value, reason = BAD[what]
    with bench(tmp_path) as here:
        send_raw(here, value)
        here.task("note").options(key="same").delay(7)
        worker = here.start_worker("feed")
        assert here.wait_for_lines(1) == ["7"]
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        (letter,) = here.dead_letters("feed")
        assert (letter["reason"], letter["value"]) == (reason, repr(value))
        assert (letter["group"], letter["topic"]) == ("feed", "feed")
        assert metric(worker.scrape(), "taskq_dead_letters", group="feed") == [1.0]
        assert metric(worker.scrape(), "taskq_executions_total", outcome="dead") == [1.0]
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("fail", {"reason": "failed", "type": "ValueError", "message": "not 3"}),
        ("fail_async", {"reason": "failed", "type": "ValueError", "message": "not 3"}),
        ("reject", {"reason": "rejected", "type": "Reject", "message": "not 3"}),
        ("exit_python", {"reason": "failed", "type": "SystemExit", "message": "3"}),
    ],
)
def test_a_task_that_raises_is_a_dead_letter_with_type_message_and_traceback(
    tmp_path: Path, task: str, said: dict[str, str]
) -> None:
    with bench(tmp_path) as here:
        here.task(task).options(headers={"trace": "t1"}).delay(3)
        here.task("note").delay(7)
        worker = here.start_worker("feed")
        here.wait_for_lines(1)
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert worker.stop() == 0
        (letter,) = here.dead_letters("feed")
        assert said.items() <= letter.items()
        assert letter["task"] == f"tests.apps.audit.{task}"
        assert letter["trace"] == "t1"
        assert task == "reject" or f"in {task}" in letter["traceback"]


def test_an_event_that_nobody_here_subscribed_to_is_skipped(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        send_raw(here, b'{"event": "of another program", "kwargs": {"a": 1}}')
        worker = here.start_worker("feed")
        wait_until(lambda: here.unfinished("feed") == 0, "it is finished")
        assert metric(worker.scrape(), "taskq_executions_total", outcome="skipped") == [1.0]
        assert here.dead_letters("feed") == []


def test_a_storm_of_failures_loses_none(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("fail").map([(number,) for number in range(3000)])
        worker = here.start_worker("feed")
        wait_until(lambda: len(here.dead_letters("feed")) == 3000, "3000 dead letters")
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert worker.stop() == 0
        assert {letter["message"] for letter in here.dead_letters("feed")} == {f"not {n}" for n in range(3000)}


def test_one_handler_of_an_event_that_fails_does_not_take_the_other_with_it(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.app.events["torn"].publish(number=1)
        worker = here.start_worker("feed")
        assert here.wait_for_lines(1) == ["whole 1"]
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert worker.stop() == 0
        (letter,) = here.dead_letters("feed")
        assert letter["task"] == "tests.apps.audit.on_torn_fails"
