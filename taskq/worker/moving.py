"""`taskq worker --only-delays`: a process that only moves what is delayed, without an app.

Every worker does this too, so nobody needs it; but where all workers may be away for a while (a group that is scaled
down to none), or nothing but delayed calls to them is published, it keeps time without them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from queue import Empty, SimpleQueue

from taskq.broker.port import Broker
from taskq.definitions import WORKER_INFO
from taskq.ladder import TOPICS
from taskq.metrics import Sample, Snapshot, metrics
from taskq.worker.delays import GROUP, Mover
from taskq.worker.ending import CLOSE_S_MAX, LEAVE_S_MAX, Ending
from taskq.worker.http import Health
from taskq.worker.signals import catching_signals
from taskq.worker.worker import SILENT_S_MAX

SIGNAL_LATE_S_MAX = 1.0
"""When a signal is heard at the latest: one that comes just before the main thread falls asleep does not wake it."""

_log = logging.getLogger("taskq.worker")


class DelaysWorker:
    """Does what a `Worker` does besides running invocations. `run` may be called once."""

    drain_timeout_s = 0.0
    """Nothing runs that could be waited for."""
    why_recycled = ""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._mover = Mover(broker)
        self.ending = Ending()
        """See `Worker.ending`."""
        self._stops = 0
        self._is_done = threading.Event()
        self._over: SimpleQueue[None] = SimpleQueue()
        """What `run` waits for. Its `put` is reentrant: a signal handler's may come in the middle of that."""
        self._error: BaseException | None = None

    def run(self) -> int:
        """Move until stopped; return the exit code: 0, or 1 if it had to give up or was stopped at once."""
        metrics.add_source(self._samples)
        # In a thread, so that the main one hears signals while the broker blocks.
        mover = threading.Thread(target=self._move, name="taskq-delays", daemon=True)
        try:
            mover.start()
            self._wait()
        finally:
            self.ending.within(LEAVE_S_MAX)
            metrics.remove_source(self._samples)
        if self._error is not None:
            _log.critical("the mover of delayed invocations gives up: %s", self._error, exc_info=self._error)
        return self.exit_code()

    def _wait(self) -> None:
        while True:
            with suppress(Empty):
                return self._over.get(timeout=SIGNAL_LATE_S_MAX)

    def exit_code(self) -> int:
        """What `run` returns, once it has ended."""
        return 1 if self._error is not None or self._stops > 1 or not self.has_drained() else 0

    def has_drained(self) -> bool:
        return self._is_done.is_set()

    def _move(self) -> None:
        try:
            self._mover.run()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done.set()
            self._over.put(None)

    @contextmanager
    def catching_signals(self) -> Generator[None]:
        """Inside this, SIGTERM, SIGINT and SIGHUP mean `stop`."""
        with catching_signals(self.stop):
            yield

    def stop(self) -> None:
        """Stop; what was moved is committed. The second call stops at once, and waits for no broker. From any
        thread."""
        self._stops += 1
        if self._stops == 1:
            _log.info("stopping")
            self._mover.stop()
            self.ending.within(CLOSE_S_MAX)
        else:
            self.ending.at_once()
            self._over.put(None)

    def stop_now(self) -> None:
        """`stop` as if it had been called before. From any thread."""
        self._stops = max(self._stops, 1)
        self.stop()

    def drain(self) -> None:
        """`stop`, unless it was told to already. From any thread."""
        if not self._stops:
            self.stop()

    def describe(self) -> list[tuple[str, str]]:
        """Who this is, in headed lines."""
        return [
            (f"taskq {version('taskq')}", "moves delayed invocations, runs none"),
            ("broker", self._broker.url),
            ("topics", f"{TOPICS[0]} to {TOPICS[-1]}"),
        ]

    def metrics_snapshot(self) -> Snapshot:
        return metrics.snapshot()

    def _samples(self) -> Iterator[Sample]:
        yield from self._mover.samples()
        yield Sample(WORKER_INFO, (GROUP, version("taskq"), self._broker.url), 1)

    def health(self) -> Health:
        """Whether the process does its work at all."""
        return Health() if self._error is None else Health((f"the mover has ended: {self._error}",))

    def ready(self) -> Health:
        """Whether it has joined the movers, and the broker answers."""
        reasons = list(self.health().reasons)
        silent_s = time.monotonic() - self._mover.polled_at
        if not self._mover.polled_at:
            reasons.append("it has not joined its group yet")
        elif silent_s > SILENT_S_MAX:
            reasons.append(f"the broker has not answered for {silent_s:.0f} s")
        if self._stops:
            reasons.append("it is stopping")
        return Health(tuple(reasons))
