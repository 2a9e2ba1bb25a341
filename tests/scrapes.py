"""Reading what a worker's metrics page says."""

from __future__ import annotations

from urllib.error import HTTPError

from tests.processes import WorkerProcess, metric, wait_until


def partitions_held(worker: WorkerProcess, topic: str = "feed") -> int:
    return len(metric(worker.scrape(), "taskq_backlog", topic=topic))


def wait_for_balance(first: WorkerProcess, second: WorkerProcess) -> None:
    wait_until(lambda: partitions_held(first) == partitions_held(second) == 4, "four partitions each")


def page(worker: WorkerProcess, path: str) -> str:
    """What a page says, whatever its status."""
    try:
        return worker.scrape(path)
    except HTTPError as error:
        with error:
            return str(error.read().decode())
