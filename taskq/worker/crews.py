"""Who runs what in a worker: coroutines on the event loop, threads, or threads with a child process each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from taskq.app import TaskQ
from taskq.errors import ConfigError
from taskq.worker.execution import Execution
from taskq.worker.executors import calls
from taskq.worker.executors.async_ import AsyncCrew
from taskq.worker.executors.calls import Setup, is_importable
from taskq.worker.executors.processes import ProcessCrew, ProcessPool
from taskq.worker.executors.threads import ThreadCrew
from taskq.worker.work import Crew, Feed, Job


class Crews:
    """All three of a worker, each of `size`; and says of each job who runs it, and how.

    `modules` are what was imported to have the app, and `logs` says whether children log to stderr as its settings say.
    Raises ConfigError for a task that is to run in a child process and can't be had there; and in such a process.
    """

    def __init__(
        self,
        app: TaskQ,
        jobs: Sequence[Job],
        size: int,
        feed: Feed,
        backend: str,
        modules: Sequence[str],
        *,
        logs: bool,
    ) -> None:
        if calls.in_child:
            raise ConfigError(
                "this is a child process of a worker, and imports what starts another: put that below "
                "`if __name__ == '__main__':`"
            )
        self.execution = Execution()
        self.async_ = AsyncCrew(size, feed)
        self.threads = ThreadCrew(size, feed)
        tasks = [job.task for job in jobs if is_importable(job.task)]
        setup = partial(Setup.like, app, tasks, modules=modules, backend=backend, logs=logs)
        self.pool = ProcessPool(tasks, setup)
        self.processes = ProcessCrew(size, feed, self.pool)
        for job in jobs:
            self._assign(job)

    def _assign(self, job: Job) -> None:
        declared = job.task.declared
        if declared.executor == "process":
            if not is_importable(job.task):
                raise ConfigError(
                    f"{job.task.name} can't run in a child process, which would have to import it: define it at the "
                    "top level of a module"
                )
            job.crew, job.run = self.processes, self.pool.run
            job.careful = job
        else:
            run = self.execution.run_async if job.is_async else self.execution.run_sync
            job.crew = self.async_ if job.is_async else self.threads
            job.run = run if declared.timeout is not None else None
            job.careful = job if job.run is not None else job.variant(run)
        job.quarantined = job.careful
        if is_importable(job.task):
            job.quarantined = job.variant(self.pool.run_suspect, self.processes)

    def needed_by(self, jobs: Iterable[Job]) -> list[Crew]:
        """Those of jobs that nobody suspects."""
        needed = {id(job.crew) for job in jobs}
        everybody: tuple[Crew, ...] = (self.async_, self.threads, self.processes)
        return [crew for crew in everybody if id(crew) in needed]
