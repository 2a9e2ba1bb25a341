"""Runs invocations: `Worker(app, WorkerOptions(group="feed")).run()` is what `taskq worker -g feed` calls."""

from taskq.worker.worker import Worker, WorkerDescription, WorkerOptions

__all__ = ["Worker", "WorkerDescription", "WorkerOptions"]
