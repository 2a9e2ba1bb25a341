"""What a worker holds is bounded, how far it runs ahead too, and both are seen."""

from __future__ import annotations

import threading

import anyio.lowlevel
import pytest

from taskq import TaskQ
from tests.processes import WAIT_S, wait_until
from tests.working import stalled, unfinished, wait_finished, working


def test_what_is_queued_is_bounded_and_the_rest_waits_in_the_log(app: TaskQ) -> None:
    gate = threading.Event()

    @app.task
    def waits() -> None:
        gate.wait(WAIT_S)

    limit = app.settings.in_flight_max
    waits.map([()] * (6 * limit))
    with working(app, concurrency=2) as worker:
        wait_until(lambda: len(worker._running()) == 2, "two run")
        wait_until(lambda: worker._poller.feed.is_full, "enough is queued")
        assert len(worker._threads.queue) <= 2 * limit
        assert unfinished(worker) == 6 * limit
        gate.set()
        wait_finished(worker)


def test_running_ahead_is_bounded_and_visible(app: TaskQ) -> None:
    """Guarantee 4: where progress would not fit into a commit the partition stalls, says so, and goes on later."""
    gate = threading.Event()
    count = [0]

    @app.task
    async def held_up() -> None:
        while not gate.is_set():
            await anyio.lowlevel.checkpoint()

    @app.task
    def quick() -> None:
        count[0] += 1

    slow, fast = held_up.options(key="same"), quick.options(key="same")
    for _ in range(40):  # in turns, so that every run of finished ones is short
        for _ in range(500):
            slow.delay()
            fast.delay()

    with working(app, concurrency=1) as worker:
        wait_until(lambda: stalled(worker) or count[0] == 20_000, "it stalls")
        assert count[0] < 20_000
        gate.set()
        wait_finished(worker)
        wait_until(lambda: not stalled(worker), "it stalls no more")
    assert count[0] == 20_000


def test_progress_that_would_not_fit_stalls_its_partition_and_loses_nothing(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.worker.work.ENCODED_BYTES_MAX", 20)
    gate, count = threading.Event(), [0]

    @app.task
    def waits_or_not(number: int) -> None:
        if number == 0:
            gate.wait(WAIT_S)
        count[0] += 1

    waits_or_not.options(key="same").map([(number,) for number in range(40_000)])
    with working(app, concurrency=8) as worker:
        wait_until(lambda: stalled(worker) and count[0] > 500, "it stalls")
        wait_until(lambda: 0 < unfinished(worker) < 40_000, "what could be done is done")
        gate.set()
        wait_until(lambda: count[0] == 40_000, "all ran, each once")
        wait_finished(worker)
        wait_until(lambda: not stalled(worker), "it stalls no more")
