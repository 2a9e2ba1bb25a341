"""Where taskq's own time goes: `python -m benchmarks.micro [delay|send|map|drain] [-n N] [--broker URL] [--profile]`.

One process, no peers, the project's own environment. For whoever optimises: run it before and after. With --profile
the functions of all threads are listed by their own time; a profiled run is two to five times slower, so compare its
shares and not its rates.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.board import Board

if TYPE_CHECKING:
    from taskq import TaskQ

_BULK = 10_000
_DRAIN_TIMEOUT_S = 120.0
_MEASURES = ("delay", "send", "map", "drain")


@contextlib.contextmanager
def profiled(lines: int) -> Iterator[None]:
    """Profile this thread and those started meanwhile; print the `lines` functions that took most.

    Counted is each thread's own CPU time: waiting, also for the interpreter's lock, is nobody's work.
    """
    profiles = [cProfile.Profile(time.thread_time)]
    run = threading.Thread.run

    def profiled_run(self: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        profile.runcall(run, self)

    threading.Thread.run = profiled_run  # type: ignore[method-assign]
    try:
        with profiles[0]:
            yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
    stats = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        with contextlib.suppress(TypeError):  # a thread that is still running has no numbers yet
            stats.add(profile)
    stats.strip_dirs().sort_stats("tottime").print_stats(lines)


def each(what: str, call: Callable[[int], object], count: int) -> None:
    """Time `call` one by one, and say so."""
    now = perf_counter_ns
    times = [now()]
    add = times.append
    for index in range(count):
        call(index)
        add(now())
    calls = sorted(after - before for before, after in pairwise(times))
    rate = count / ((times[-1] - times[0]) / 1e9)
    p50, p99, worst = (calls[min(count - 1, int(count * share))] / 1e3 for share in (0.5, 0.99, 1.0))
    print(f"{what:28} {rate:>10,.0f}/s   p50 {p50:.2f} us   p99 {p99:.2f} us   max {worst:,.0f} us")


def bulk(what: str, call: Callable[[], object], count: int) -> None:
    began = time.perf_counter()
    call()
    elapsed_s = time.perf_counter() - began
    print(f"{what:28} {count / elapsed_s:>10,.0f}/s   mean {elapsed_s / count * 1e6:.2f} us")


class Bench:
    """An app with the tasks of `work.py` on a broker of its own."""

    def __init__(self, app: TaskQ, board: Board, count: int) -> None:
        from benchmarks import work

        self.app = app
        self.board = board
        self.count = count
        self.tasks = {name: app.task(name=name)(function) for name, function in work.TASKS.items()}

    def delay(self) -> None:
        each("delay(index)", self.tasks["noop"].delay, self.count)

    def send(self) -> None:
        """The broker alone: the bytes of one invocation, without making them or a handle."""
        value = b"x" * 60
        send = self.app.producer.send
        each("Producer.send, 60 bytes", lambda _index: send("micro", value), self.count)

    def map(self) -> None:
        bulk("map, by 10,000", lambda: self._map("noop"), self.count)

    def drain(self) -> None:
        for name in ("noop", "noop_async"):
            self._map(name)
            bulk(f"drain {name}", self._drain, self.count)
            self.board.flags[:] = bytes(self.board.size)

    def _map(self, name: str) -> None:
        for start in range(0, self.count, _BULK):
            self.tasks[name].map([(index,) for index in range(start, min(start + _BULK, self.count))])

    def _drain(self) -> None:
        """Run a worker in this process until everything has run. Includes its start and its end: some 10 ms."""
        from taskq.worker import Worker, WorkerOptions

        worker = Worker(self.app, WorkerOptions(group="default"))
        threading.Thread(target=self._stop_when_done, args=(worker.stop,), daemon=True).start()
        worker.run()
        missing = self.count - self.board.done(self.count)
        if missing:
            print(f"{missing} messages have not run")

    def _stop_when_done(self, stop: Callable[[], object]) -> None:
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        low = 0
        while low < self.count and time.monotonic() < deadline:
            time.sleep(0.002)
            low = self.board.first_unset(low, self.count)
        stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="*", metavar="|".join(_MEASURES), help="one or more of these (default: all)")
    parser.add_argument("-n", type=int, default=100_000, help="invocations (default: 100,000)")
    parser.add_argument("--broker", help="broker URL (default: an embedded log in a temporary directory)")
    parser.add_argument("--profile", action="store_true", help="list the functions that take most time")
    options = parser.parse_args()
    if unknown := set(options.what).difference(_MEASURES):
        parser.error(f"there is no measure {', '.join(sorted(unknown))}: choose from {', '.join(_MEASURES)}")
    with tempfile.TemporaryDirectory(prefix="taskq-micro-") as directory:
        os.environ["BENCH_BOARD"] = f"{directory}/board"
        board = Board.create(Path(directory, "board"), options.n)
        for what in options.what or _MEASURES:
            _run(what, options, board, f"{directory}/{what}")


def _run(what: str, options: argparse.Namespace, board: Board, directory: str) -> None:
    """Each measure has an app and a log of its own, so that none finds what another left."""
    from taskq import TaskQ

    with TaskQ("micro", broker=options.broker or directory) as app:
        bench = Bench(app, board, options.n)
        with profiled(25) if options.profile else contextlib.nullcontext():
            getattr(bench, what)()


if __name__ == "__main__":
    main()
