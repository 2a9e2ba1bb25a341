"""One worker process: its event loop, its crews, its poller, its signals, its end.

The main thread runs the event loop (asyncio's or trio's), on which `async def` tasks run and signals arrive. `def`
tasks run in the thread crew. The poller has a thread of its own, since a broker blocks.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import frozen

from taskq.app import TaskQ
from taskq.broker.port import Broker
from taskq.context import identify
from taskq.definitions import LOOP_BLOCKED_SECONDS
from taskq.errors import ConfigError
from taskq.message import format_id
from taskq.metrics import Sample, Snapshot, metrics
from taskq.text import printable
from taskq.worker.crews import Crews
from taskq.worker.delays import Mover
from taskq.worker.ending import CLOSE_S_MAX, LEAVE_S_MAX, Ending
from taskq.worker.executors.async_ import backend_options, loop_caller
from taskq.worker.gauges import samples
from taskq.worker.http import Health
from taskq.worker.joining import join
from taskq.worker.life import Life
from taskq.worker.link import EXIT_RECYCLE
from taskq.worker.poller import Poller
from taskq.worker.recycle import Recycler, executed
from taskq.worker.reminding import Reminder
from taskq.worker.signals import catching_signals
from taskq.worker.telling import is_on, telling
from taskq.worker.watch import LoopWatch
from taskq.worker.work import Item, Job, Limits

BACKENDS = ("asyncio", "trio")

SILENT_S_MAX = 70.0
"""The poller comes round at least every 60 s; when it has not for this long, something is wrong."""

SWITCH_INTERVAL_S = 0.001
"""How long one Python thread may keep others waiting. Python's own 5 ms is felt by whoever waits for a busy crew: the
poller, the event loop, a thread whose 10 ms of I/O are over."""

GC_THRESHOLD = 50_000
"""Allocations between two collections of the youngest objects. A worker holds some ten thousand tuples that wait to be
run and are never garbage; Python's own 700 walks them again and again, a third of the cost of a no-op invocation."""

_log = logging.getLogger("taskq.worker")


@frozen
class WorkerOptions:
    """How a worker is to run. What is None is taken from the app's settings."""

    group: str
    backend: str = "asyncio"
    concurrency: int | None = None
    """`def` invocations run at once, as many `async def` ones, and as many in child processes."""
    modules: tuple[str, ...] = ()
    """What was imported to have the app. Child processes import the same, and the modules of tasks."""
    logs: bool = False
    """Whether child processes are to log to stderr as the app's settings say."""


@frozen
class WorkerDescription:
    """Who a worker is, for its first lines."""

    version: str
    broker: str
    group: str
    tasks: tuple[str, ...]
    topics: tuple[tuple[str, int], ...]
    """Names and numbers of partitions."""
    concurrency: int
    backend: str


class Worker:
    """Runs invocations for one group until it is told to stop. `run` may be called once.

    Raises ConfigError if the group has no handlers, or the backend is not installed.
    """

    def __init__(self, app: TaskQ, options: WorkerOptions) -> None:
        if options.backend not in BACKENDS:
            raise ConfigError(f"backend {options.backend!r} is not one of: {', '.join(BACKENDS)}")
        if options.backend == "trio" and find_spec("trio") is None:
            raise ConfigError("the trio backend needs trio: pip install 'taskq[trio]'")
        settings = app.settings
        self._options = options
        self._handlers = app.handlers(options.group)
        self._broker: Broker = app.broker
        self.drain_timeout_s = settings.drain_timeout_s
        self._concurrency = options.concurrency or settings.concurrency
        jobs: dict[int, Job] = {}
        by_name = {
            name: tuple(jobs.setdefault(id(task), Job(task, options.group, metrics)) for task in tasks)
            for name, tasks in self._handlers.by_name.items()
        }
        self._poller = Poller(
            self._broker,
            options.group,
            join(
                self._broker,
                options.group,
                self._handlers.topics,
                offset_reset=settings.offset_reset,
                is_late=app.has_lifespan,
            ),
            self._handlers.topics,
            by_name,
            app.knows,
            metrics,
            Limits(self._concurrency, settings.in_flight_max, settings.commit_interval_ms / 1000),
        )
        self._jobs = list(jobs.values())
        said = (options.backend, options.modules)
        crews = Crews(app, self._jobs, self._concurrency, self._poller.feed, *said, logs=options.logs)
        self._execution = crews.execution
        self._threads, self._async, self._processes = crews.threads, crews.async_, crews.processes
        self._pool = crews.pool
        self._crews = crews.needed_by(self._jobs)
        self._life = Life(app)
        self._watch = LoopWatch(self._async.running)
        if is_on():
            self._tell_outcomes()
        self._poller.on_tick += [self._tell_overdue, self._watch.tick]
        self._reader = self._broker.reader()
        self._admin = self._broker.admin()
        self.ending = Ending()
        """Told how long the end may take: for who owns the process."""
        self._stops = 0
        self._overdue: list[Item] = []
        """Runs in threads that may never end."""
        self.why_recycled = ""
        """Why it ends, if that is for another process to take its place."""
        self._error: BaseException | None = None
        self._poller_is_done = threading.Event()
        self._mover = Mover(self._broker, joins_late=app.has_lifespan)
        self._reminder = Reminder(self._broker, options.group)

    def _tell_outcomes(self) -> None:
        for job in self._jobs:
            run = self._execution.run_async if job.is_async else self._execution.run_sync
            for variant in {id(one): one for one in (job, job.careful, job.quarantined)}.values():
                variant.run = telling(variant.run or run)

    def _tell_overdue(self, now: float) -> None:
        """Runs in threads can't be stopped: say so, and let others go on in their place."""
        for item in self._execution.overdue(now):
            job, envelope, record, place = item
            ident = printable(format_id(identify(envelope, record, place.tp)))
            _log.error(
                "%s[%s] is over its timeout of %g s, and a thread can't be stopped: it goes on, and another has its "
                "place. current.check() in the task would end it",
                *(job.task.name, ident, job.task.declared.timeout),
            )
            metrics.overdue.labels(job.group, job.task.name).inc()
            self._threads.replace(item)
            self._overdue.append(item)
            if self._is_stuck() and self.why_recycled and not self._stops:
                self._poller.stop(self.drain_timeout_s)

    # -- running

    def run(self) -> int:
        """Work until stopped; return the exit code: 0 if it drained, 1 if it had to give up or was stopped at once,
        EXIT_RECYCLE if it is to be replaced."""
        metrics.add_source(self._samples)
        switch_interval, gc_thresholds = sys.getswitchinterval(), gc.get_threshold()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, *gc_thresholds[1:])
        try:
            options = backend_options(self._options.backend)
            return anyio.run(self._main, backend=self._options.backend, backend_options=options)
        finally:
            gc.set_threshold(*gc_thresholds)
            gc.unfreeze()
            sys.setswitchinterval(switch_interval)
            metrics.remove_source(self._samples)

    async def _main(self) -> int:
        call_soon = loop_caller()
        self._watch.start(call_soon)
        try:
            self._error = await self._life.around(self._work, call_soon) or self._error
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            if not self._poller_is_done.is_set():  # nothing has run; there is only to close what is open
                self._poller.stop_now()
                self._poll()
            self.ending.within(LEAVE_S_MAX)
        return self.exit_code()

    def exit_code(self) -> int:
        """What `run` returns, once the poller has ended."""
        if self._error is not None or self._stops > 1 or not self.has_drained():
            return 1
        return EXIT_RECYCLE if self.why_recycled and not self._stops else 0

    def has_drained(self) -> bool:
        """Whether there is nothing left to do but to close what is open."""
        return self._poller_is_done.is_set()

    async def _work(self) -> None:
        async with anyio.create_task_group() as group:
            if self._async in self._crews:
                await group.start(self._run_async)
            if self._threads in self._crews:
                self._threads.start()
            self._poller.start(self._crews, aside=self._processes)
            group.start_soon(self._stop_if_cancelled)
            mover = threading.Thread(target=self._move, name="taskq-delays", daemon=True)
            mover.start()
            self._reminder.start()
            try:
                await anyio.to_thread.run_sync(self._poll, limiter=anyio.CapacityLimiter(1))
            finally:
                self._reminder.stop()
                self._mover.stop()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(mover.join)
                    await anyio.to_thread.run_sync(self._processes.stop)
                self._threads.stop()
                self._async.cancel()
            group.cancel_scope.cancel()
        self.ending.within(max(self.drain_timeout_s, LEAVE_S_MAX))  # for the lifespan
        await anyio.lowlevel.checkpoint()  # raises if the lifespan has failed: that is the error to tell then
        if self._error is not None:
            _log.critical("the worker of group %s gives up: %s", self._options.group, self._error, exc_info=self._error)

    async def _stop_if_cancelled(self) -> None:
        """Waiting for the poller can't be cancelled: end it if the lifespan around the work fails."""
        try:
            await anyio.sleep_forever()
        finally:
            if not self._poller_is_done.is_set():
                self._poller.stop_now()

    async def _run_async(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the async crew, without which this worker is none: should it end before the poller, all ends."""
        error: BaseException | None = None
        try:
            await self._async.run(task_status=task_status)
        except BaseException as raised:
            error = raised
        if not self._poller_is_done.is_set():
            self._error = error or RuntimeError("the async crew ended by itself")
            self._poller.stop_now()
        if isinstance(error, anyio.get_cancelled_exc_class()):
            raise error

    def _poll(self) -> None:
        try:
            self._poller.run()
        except BaseException as error:
            self._error = error
        finally:
            self._poller_is_done.set()
            self.ending.drained()

    def _move(self) -> None:
        try:
            self._mover.run()
        except BaseException as error:
            self._error = self._error or error
            self._poller.stop_now()

    @contextmanager
    def catching_signals(self) -> Generator[None]:
        """Inside this, SIGTERM, SIGINT and SIGHUP mean `stop`. On the main thread only, and around `run`."""
        with catching_signals(self.stop):
            yield

    def stop(self) -> None:
        """The first call drains: what runs may end. The second stops at once. From any thread."""
        self._stops += 1
        if self._stops == 1:
            _log.info("draining; once more to stop at once")
            self._poller.stop(self.drain_timeout_s)
            if self._poller.polled_at and not self.has_drained():  # else the lifespan is opening or closing
                self.ending.within(self.drain_timeout_s + CLOSE_S_MAX)  # should the broker not answer any more
        else:
            self.ending.at_once()
            self._poller.stop_now()
            self._life.stop_now()
            self._pool.hurry()

    def stop_now(self) -> None:
        """`stop` as if it had been called before. From any thread."""
        self._stops = max(self._stops, 1)
        self.stop()

    def drain(self) -> None:
        """`stop`, unless it was told to already. From any thread."""
        if not self._stops:
            self.stop()

    def recycle_at(self, rss_bytes_max: int | None, invocations_max: int | None) -> None:
        """End with EXIT_RECYCLE when a limit is reached: for a supervisor that starts another. Before `run`.

        Raises ConfigError if it has more memory than that already.
        """
        count = partial(executed, metrics, self._options.group)
        self._poller.on_tick.append(Recycler(rss_bytes_max, invocations_max, count, self._recycle).tick)

    def _recycle(self, why: str) -> None:
        """Drain as long as it takes, so that nothing is run twice; but not for ever for what may never end."""
        if self._stops:
            return
        self.why_recycled = why
        _log.info("draining for another to take its place: %s", why)
        self._poller.stop(self.drain_timeout_s if self._is_stuck() else math.inf)
        if self._stops:  # a signal came meanwhile: that one has a limit
            self._poller.stop(self.drain_timeout_s)

    def _is_stuck(self) -> bool:
        """Whether something runs that may never end."""
        running = set(map(id, self._threads.running()))
        self._overdue = [item for item in self._overdue if id(item) in running]
        return bool(self._overdue)

    # -- looking

    def describe(self) -> WorkerDescription:
        return WorkerDescription(
            version=version("taskq"),
            broker=self._broker.url,
            group=self._options.group,
            tasks=tuple(sorted({task.name for tasks in self._handlers.by_name.values() for task in tasks})),
            topics=tuple((topic, self._admin.partitions(topic)) for topic in self._handlers.topics),
            concurrency=self._concurrency,
            backend=self._options.backend,
        )

    def metrics_snapshot(self) -> Snapshot:
        return metrics.snapshot()

    def _running(self) -> list[Item]:
        return self._threads.running() + self._async.running() + self._processes.running()

    def _samples(self) -> Iterator[Sample]:
        info = (version("taskq"), self._broker.url)
        works = list(self._poller.works.values())
        held_up = self._poller.is_held_up
        group, unsynced_s = self._options.group, self._broker.unsynced_s
        yield from samples(group, works, held_up, self._running, self._reader, self._admin, info, unsynced_s)
        yield Sample(LOOP_BLOCKED_SECONDS, (group,), self._watch.silent_s())
        yield from self._mover.samples()

    def health(self) -> Health:
        """Whether the process does its work, or ends as it was told to: closing may take its time."""
        if self._poller_is_done.is_set() and (self._error is not None or not self._is_to_end):
            return Health((f"the poller has ended: {self._error or 'nobody asked for it'}",))
        complaint = self._watch.complaint()
        return Health((complaint,) if complaint else ())

    @property
    def _is_to_end(self) -> bool:
        """Whether it was told to, or is to be replaced."""
        return bool(self._stops or self.why_recycled)

    def ready(self) -> Health:
        """Whether it has joined its group, reaches its broker and may take work."""
        reasons = list(self.health().reasons)
        silent_s = time.monotonic() - self._poller.polled_at
        if not self._poller.polled_at:
            reasons.append("it has not joined its group yet")
        elif silent_s > SILENT_S_MAX:
            reasons.append(f"the broker has not answered for {silent_s:.0f} s")
        if self._is_to_end:
            reasons.append("it is closing" if self._poller_is_done.is_set() else "it is draining")
        reasons += [f"{work.tp}: {work.error}" for work in list(self._poller.works.values()) if work.error]
        if self._pool.error is not None:
            reasons.append(self._pool.error.partition("\n")[0])
        return Health(tuple(reasons))
