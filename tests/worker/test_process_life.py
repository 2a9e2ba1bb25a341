"""What an app has around its tasks, it has in child processes, too: middleware and lifespans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.worker.executors import processes
from tests.processes import Bench, bench, is_gone, wait_until
from tests.working import wait_finished, working


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TEST_AUDIT", str(tmp_path / "audit"))
    with bench(tmp_path, "tests.apps.living") as made:
        yield made


def test_a_child_has_a_lifespan_of_its_own_and_closes_it_when_it_is_ended(
    here: Bench, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "IDLE_S", 0.05)
    monkeypatch.setattr(processes, "LOOK_S", 0.01)
    with working(here.app, backend, group="feed", concurrency=1) as worker:
        here.task("use_async").delay(1)
        wait_finished(worker)
        opened = here.wait_for_lines(5)
        own = str(os.getpid())
        (pid,) = {line.split()[1] for line in opened if line.startswith("open")} - {own}
        assert opened[1:4] == [f"open {pid}", f"before (1,) {pid}", f"uses 1 {pid} True"]
        assert opened[4] == f"closed {pid}"
        wait_until(lambda: is_gone(int(pid)), "it is gone")
    assert here.audited()[5:] == [f"closed {own}"]


def test_middleware_is_around_a_run_in_the_child(here: Bench) -> None:
    here.task("use").delay(1)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
    lines = [line.split() for line in here.audited()]
    (before,), (used,) = ([line for line in lines if line[0] == what] for what in ("before", "uses"))
    assert before[1:] == ["(1,)", used[2]]
    assert used[1] == "101"


def test_invocations_in_a_child_find_its_context_variables_and_no_others(here: Bench) -> None:
    for name in ("leave", "leave_async"):
        here.task(name).map([(1,), (2,)])
    with working(here.app, group="feed", concurrency=1) as worker:
        wait_finished(worker)
    assert [line for line in here.audited() if line.startswith("finds")] == ["finds all"] * 4


def test_a_child_whose_lifespan_can_not_be_opened_is_not_started(
    here: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PAUSE_S_MAX", 0.1)
    with working(here.app, group="feed") as worker:
        wait_until(lambda: worker.ready().ok, "the worker's is open")
        (here.folder / "fail").touch()
        here.task("use").delay(1)
        wait_until(lambda: worker.ready().reasons, "it says so")
        assert "no child process can be started" in worker.ready().reasons[0]
        assert "RuntimeError: it is not to be had" in caplog.text
        (here.folder / "fail").unlink()
        wait_finished(worker)
    assert here.dead_letters("feed") == []


def test_a_child_whose_lifespan_fails_ends_with_what_it_runs(here: Bench, backend: str) -> None:
    worker = here.start_worker("feed", "-c", "1", "--backend", backend).wait_ready()
    here.task("stay").delay()
    _, pid = here.wait_for_lines(4)[-1].split()
    (here.folder / f"break {pid}").touch()
    worker.wait_for("the lifespan of the app failed in a child process")
    wait_until(lambda: is_gone(int(pid)), "it is gone")
    wait_until(lambda: here.unfinished("feed") == 0, "it is settled")
    (letter,) = here.dead_letters("feed")
    assert (letter["reason"], letter["message"]) == ("died", "the process that ran it ended with exit code 1")
    here.task("use").delay(1)
    here.wait_for_lines(7)
    assert worker.stop() == 0
