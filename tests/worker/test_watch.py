"""A worker whose event loop is blocked says so, and who blocks it."""

from __future__ import annotations

import threading

import pytest

from taskq import TaskQ
from taskq.worker import watch
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOP_SILENT_S_MAX", 0.3)
    monkeypatch.setattr(watch, "ASK_S", 0.05)


@pytest.mark.usefixtures("short")
def test_a_blocked_loop_is_told_once_and_makes_the_process_unwell(
    app: TaskQ, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, ran = threading.Event(), threading.Event()

    @app.task(name="blocks")
    async def blocks() -> None:
        wait_for_ever()

    def wait_for_ever() -> None:
        go_on.wait(WAIT_S)

    @app.task
    def in_thread() -> None:
        ran.set()

    handle = blocks.delay()
    with working(app, backend) as worker:
        wait_until(lambda: not worker.health().ok, "it is unwell")
        assert worker.health().reasons[0].startswith("the event loop has not answered for")
        wait_until(lambda: "has not answered" in caplog.text, "it is told")
        [(labels, [silent_s])] = worker.metrics_snapshot()["taskq_loop_blocked_seconds"]
        assert labels == ("default",)
        assert silent_s >= 0.3
        in_thread.delay()
        assert ran.wait(WAIT_S), "threads go on"
        go_on.set()
        wait_until(lambda: worker.health().ok, "it is well again")
        wait_finished(worker)
    told = [record.getMessage() for record in caplog.records if "has not answered" in record.getMessage()]
    assert len(told) == 1
    assert f"blocks[{handle.id}]" in told[0]
    assert "wait_for_ever" in told[0]
    assert "the event loop lives again" in caplog.text


@pytest.mark.alone
@pytest.mark.usefixtures("short")
def test_a_loop_with_much_to_do_is_not_blocked(app: TaskQ, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    @app.task
    async def nothing() -> None: ...

    nothing.map([()] * 100_000)
    with working(app, backend) as worker:
        wait_finished(worker)
    assert "has not answered" not in caplog.text
