"""Guarantee 6: a task that kills its worker is stopped. After `max_deliveries` deaths it is a dead letter that says so,
and everything around it has run."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.processes import WAIT_S, Bench, bench, wait_until

COUNT = 1000


def publish(here: Bench, poison: str, how: str) -> None:
    """The poison in the middle of harmless ones, `def` and `async def`."""
    note, note_async = here.task("note"), here.task("note_async")
    note.map([(number,) for number in range(0, COUNT // 2, 2)])
    note_async.map([(number,) for number in range(1, COUNT // 2, 2)])
    here.task(poison).delay(how)
    note.map([(number,) for number in range(COUNT // 2, COUNT - 1)])


def work_until_done(here: Bench, *arguments: str) -> int:
    """Start a worker, and another whenever one has died, until nothing is left to do. How many have died."""
    died = 0
    while True:
        worker = here.start_worker("feed", *arguments)
        wait_until(partial(has_died_or_done, here, worker.process), "it dies, or all is done")
        if worker.process.poll() is None:
            assert worker.stop() == 0
            return died
        died += 1


def has_died_or_done(here: Bench, process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or here.unfinished("feed") == 0


def check(here: Bench, poison: str, deliveries: int) -> None:
    lines = here.audited()
    notes = [line for line in lines if not line.startswith("poison")]
    assert set(notes) == {str(number) for number in range(COUNT - 1)}, "everything around it has run"
    assert len(lines) - len(notes) == deliveries, "it was run exactly so often"
    (letter,) = here.dead_letters("feed")
    assert letter["reason"] == "deliveries"
    assert letter["task"] == f"tests.apps.poison.{poison}"
    assert letter["type"] == "taskq.errors.ProcessDied"
    assert f"died each of {deliveries} times" in letter["message"]


@pytest.mark.parametrize("how", ["kill", "exit"])
@pytest.mark.parametrize(
    ("poison", "deliveries", "deaths"),
    [("poison_2", 2, 1), ("poison_3", 3, 2), ("poison_3_async", 3, 2), ("poison_5", 5, 2)],
)
def test_of_one_worker_that_is_started_again_whenever_it_dies(
    tmp_path: Path, how: str, poison: str, deliveries: int, deaths: int
) -> None:
    with bench(tmp_path, "tests.apps.poison") as here:
        publish(here, poison, how)
        assert work_until_done(here) == deaths, "the others were deaths of child processes"
        check(here, poison, deliveries)


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_of_two_supervised_workers_that_kill_each_other(tmp_path: Path, how: str) -> None:
    """Partitions change hands meanwhile, and those that are suspect stay it."""
    with bench(tmp_path, "tests.apps.poison") as here:
        publish(here, "poison_3", how)
        worker = here.start_worker("feed", "-p", "2")
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert worker.stop() == 0
        assert len(re.findall(r"the next starts in", worker.log)) == 2
        check(here, "poison_3", 3)


def test_a_worker_that_is_stopped_leaves_suspects_to_the_next_as_suspects(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.poison") as here:
        here.task("wait").options(key="same").delay()
        here.task("poison_3").options(key="same").delay("kill")
        here.start_worker("feed", "-c", "2").process.wait(WAIT_S)
        before = here.audited()
        assert before.count("poison kill") == 1
        worker = here.start_worker("feed", "-c", "1")
        assert here.wait_for_lines(len(before) + 1)[-1] == "waits"
        worker.process.terminate()
        worker.wait_for("1 invocations that had not begun are left to others")
        (tmp_path / "go").touch()
        assert worker.process.wait(WAIT_S) == 0
        assert work_until_done(here) == 1
        assert here.audited().count("poison kill") == 3
        (letter,) = here.dead_letters("feed")
        assert letter["reason"] == "deliveries"


def test_several_poisons_at_once(tmp_path: Path) -> None:
    """None takes a harmless one with it, and a worker dies no more than twice, however many there are."""
    with bench(tmp_path, "tests.apps.poison") as here:
        here.task("note").map([(number,) for number in range(500)])
        here.task("poison_3").map([("kill",)] * 5)
        assert work_until_done(here) <= 2
        lines = here.audited()
        assert {line for line in lines if not line.startswith("poison")} == {str(number) for number in range(500)}
        assert [letter["task"] for letter in here.dead_letters("feed")] == ["tests.apps.poison.poison_3"] * 5
        assert 5 <= len([line for line in lines if line.startswith("poison")]) <= 15


def test_those_of_its_key_run_after_it_in_order(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.poison") as here:
        task = here.task("poison_in_order")
        task.map([(number,) for number in range(10)])
        work_until_done(here)
        lines = here.audited()
        assert lines.count("poison kill") == 3
        last = len(lines) - lines[::-1].index("poison kill")
        assert lines[last:] == ["5", "6", "7", "8", "9"]
        assert list(dict.fromkeys(lines[:last])) == ["0", "1", "2", "3", "poison kill"]
        (letter,) = here.dead_letters("feed")
        assert letter["reason"] == "deliveries"


def test_what_may_run_once_only_is_not_delivered_again(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.poison") as here:
        here.task("poison_once").delay("kill")
        here.task("note").map([(number,) for number in range(20)])
        work_until_done(here)
        lines = here.audited()
        assert lines.count("poison kill") == 1
        assert {str(number) for number in range(20)} == set(lines) - {"poison kill"}


def test_the_other_handler_of_an_event_runs(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.poison") as here:
        here.app.events["happened"].publish(how="kill")
        assert work_until_done(here) == 2
        lines = here.audited()
        assert lines.count("poison kill") == 3
        assert "heard" in lines
        (letter,) = here.dead_letters("feed")
        assert (letter["reason"], letter["task"]) == ("deliveries", "tests.apps.poison.on_happened_dies")
