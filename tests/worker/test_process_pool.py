"""Children that are started, given back, given up and ended: what a worker does when that is not as usual."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.worker import Worker, WorkerOptions
from taskq.worker.executors import children, processes
from taskq.worker.executors.calls import decode_path, encode_path
from tests.processes import WAIT_S, Bench, bench, is_gone, wait_until
from tests.worker.test_retries import executions
from tests.working import wait_finished, working

NOBODY = ("/nowhere/python",)

READY_AND_GONE = """
import sys
from taskq.worker.executors.calls import Link
from taskq.worker.executors.child import DONE, _next
link = Link.inherited(int(sys.argv[1]))
_next(link)
link.send(DONE)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TEST_AUDIT", str(tmp_path / "audit"))
    with bench(tmp_path, "tests.apps.processes") as made:
        yield made


def wait_told(caplog: pytest.LogCaptureFixture, what: str, times: int = 1) -> None:
    wait_until(lambda: caplog.text.count(what) >= times, f"{what!r} is said")


# --- starting


def test_children_that_die_before_they_have_run_anything_are_not_started_without_end(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as those of which something in the lifespan fails, a moment after it was opened."""
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-c", READY_AND_GONE))
    here.task("note").delay(1)
    with working(here.app, group="feed", concurrency=1) as worker:
        wait_told(caplog, "ended with exit code 0 before it had run anything; again in", 3)
        waits = [one.message.rpartition("; again in ")[2] for one in caplog.records if "; again in" in one.message]
        assert waits[:3] == ["0.1 s", "0.2 s", "0.4 s"]
        assert any("before it had run anything" in one for one in worker.ready().reasons)
        assert here.dead_letters("feed") == []
        monkeypatch.undo()
        monkeypatch.setenv("TEST_AUDIT", str(here.audit))
        here.wait_for_lines(1)
        wait_finished(worker)
        assert worker.ready().ok


def test_what_no_import_looks_at_in_the_path_keeps_no_child_from_starting(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, here.folder, "/nowhere/\udcff"])
    here.task("note").delay(1)
    with working(here.app, group="feed") as worker:
        here.wait_for_lines(1)
        wait_finished(worker)
    assert here.dead_letters("feed") == []


def test_a_path_is_for_a_child_what_it_is_here() -> None:
    odd = ["", "/here", "/nowhere/\udcff", "\ud800", "/\N{SNOWMAN}"]
    assert decode_path(encode_path([*odd, b"/bytes", Path("/path"), None])) == odd


def test_what_a_child_can_not_be_told_starts_none_and_costs_no_invocation(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "PAUSE_S_MAX", 0.05)
    start, started = children.Child.start, [0]

    def count() -> children.Child:
        started[0] += 1
        return start()

    monkeypatch.setattr(children.Child, "start", count)
    with working(here.app, group="feed", concurrency=1) as worker:
        wait_until(lambda: worker.ready().ok, "it is ready")
        setup, worker._pool._setup = worker._pool._setup, object  # type: ignore[assignment]
        here.task("note").delay(1)
        wait_told(caplog, "no child process can be started: TypeError", 3)
        assert started == [0]
        worker._pool._setup = setup
        here.wait_for_lines(1)
        wait_finished(worker)
    assert here.dead_letters("feed") == []


def test_who_waits_for_a_child_to_be_started_takes_one_that_has_come_free(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with working(here.app, group="feed", concurrency=2) as worker:
        here.task("stay").delay("gate")
        here.wait_for_lines(1)
        monkeypatch.setattr(children, "COMMAND", NOBODY)
        here.task("note").delay(1)
        wait_told(caplog, "no child process can be started")
        (here.folder / "gate").touch()
        here.wait_for_lines(3)
        wait_finished(worker)
    assert {line.split()[-1] for line in here.audited()[2:]} == {here.audited()[0].split()[2]}


@pytest.mark.parametrize("is_slow", [False, True])
def test_what_expires_while_it_waits_for_a_child_does_not_start(
    here: Bench, monkeypatch: pytest.MonkeyPatch, *, is_slow: bool
) -> None:
    """`is_slow`: there is a child in the end, but too late."""
    start = children.Child.start

    def start_late() -> children.Child:
        expired_at = time.monotonic() + 0.6
        wait_until(lambda: time.monotonic() > expired_at, "it has expired")
        return start()

    if is_slow:
        monkeypatch.setattr(children.Child, "start", start_late)
    else:
        monkeypatch.setattr(children, "COMMAND", NOBODY)
    with working(here.app, group="feed", concurrency=1) as worker:
        wait_until(lambda: worker.ready().ok, "it is ready")
        counts = executions(worker.metrics_snapshot, here.task("note").name)
        here.task("note").options(expires=0.5).delay(1)
        wait_until(lambda: counts("expired") == 1, "it has expired")
        assert len(worker._pool._idle) == is_slow, "the child is there for others"
    assert here.audited() == []


# --- running


def test_a_timeout_longer_than_what_the_system_can_wait_is_one(here: Bench) -> None:
    here.task("take_a_month").delay(1)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
    assert len(here.audited()) == 1
    assert here.dead_letters("feed") == []


def test_a_child_is_given_up_whatever_goes_wrong_while_it_runs_something(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = children.Child.ask

    def fail_after_asking(child: children.Child, message: bytes, timeout_s: float | None) -> bytes:
        answer = ask(child, message, timeout_s)
        if timeout_s == 2_600_000:
            raise RuntimeError("it is not to be")
        return answer

    monkeypatch.setattr(children.Child, "ask", fail_after_asking)
    here.task("take_a_month").delay(1)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
        (line,) = here.audited()
        wait_until(lambda: is_gone(int(line.split()[1])), "it is gone")
        assert worker._pool._runs == {}
        assert worker._pool._idle == []
        assert [letter["message"] for letter in here.dead_letters("feed")] == ["it is not to be"]


def test_a_broken_link_is_no_failed_lifespan(here: Bench) -> None:
    worker = here.start_worker("feed", "-c", "1").wait_ready()
    here.task("break_the_link").delay()
    wait_until(lambda: len(here.dead_letters("feed")) == 1, "it died")
    assert worker.stop() == 0
    assert "lifespan" not in worker.log
    assert "Traceback" not in worker.log


# --- the end


def wait_idle(worker: Worker, here: Bench, count: int) -> None:
    """So many children that don't end by themselves."""
    here.task("leave_a_thread").map([("gate",)] * count)
    here.wait_for_lines(count)
    (here.folder / "gate").touch()
    wait_finished(worker)
    wait_until(lambda: len(worker._pool._idle) == count, "all are idle")


@pytest.mark.alone
def test_idle_children_have_one_time_together_to_end(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "END_S_MAX", 2.0)
    with working(here.app, group="feed", concurrency=4) as worker:
        wait_idle(worker, here, 4)
        began_at = time.monotonic()
    assert 1.9 < time.monotonic() - began_at < 4.0


@pytest.mark.parametrize("is_late", [False, True])
def test_a_second_stop_waits_for_no_idle_child(here: Bench, monkeypatch: pytest.MonkeyPatch, *, is_late: bool) -> None:
    """`is_late`: it comes while they are waited for."""
    monkeypatch.setattr(children, "END_S_MAX", 1000.0)
    worker = Worker(here.app, WorkerOptions("feed", concurrency=2))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    try:
        wait_idle(worker, here, 2)
        worker.stop()
        if is_late:
            wait_until(lambda: worker._pool._ending, "they are being ended")
    finally:
        worker.stop()
        thread.join(WAIT_S)
    assert codes == [1]
