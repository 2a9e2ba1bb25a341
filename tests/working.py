"""A whole worker inside the test's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from taskq import TaskQ
from taskq.worker import Worker, WorkerOptions
from tests.processes import WAIT_S, wait_until


@contextmanager
def working(app: TaskQ, backend: str = "asyncio", *, group: str = "default", concurrency: int = 4) -> Iterator[Worker]:
    """A worker that runs in a thread and is drained at the end."""
    worker = Worker(app, WorkerOptions(group=group, backend=backend, concurrency=concurrency))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(WAIT_S)
    assert codes == [0]


def unfinished(worker: Worker) -> float:
    return sum(series[1][0] for series in worker.metrics_snapshot().get("taskq_backlog", ()))


def stalled(worker: Worker) -> bool:
    return any(series[1][0] for series in worker.metrics_snapshot().get("taskq_stalled", ()))


def wait_finished(worker: Worker) -> None:
    wait_until(lambda: worker.ready().ok and unfinished(worker) == 0, "all is finished")
