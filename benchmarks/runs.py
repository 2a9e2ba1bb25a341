"""One run: a fresh directory, a fresh broker, a publisher process, a worker; and a clock outside of all of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from benchmarks.board import Board
from benchmarks.peer import Peer, WorkerPlan
from benchmarks.processes import running, usage
from benchmarks.redis_server import redis_server

PROJECT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.002


class RunFailed(Exception):
    """A run gave no number; the message says why. It is reported, and the bench goes on."""


@frozen
class Stage:
    """What one run plays on. Gone, with everything started on it, when `stage` ends."""

    peer: Peer
    directory: Path
    environ: dict[str, str]
    board: Board


@contextlib.contextmanager
def stage(peer: Peer, messages: int) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        environ = os.environ | {"BENCH_DIR": name, "BENCH_BOARD": f"{name}/board", "PYTHONPATH": str(PROJECT)}
        if peer.needs_redis:
            environ["BENCH_REDIS"] = stack.enter_context(redis_server(directory))
        yield Stage(peer, directory, environ, Board.create(directory / "board", messages))


def publisher(on: Stage, kind: str, task: str, count: int, seconds: float = TIMEOUT_S) -> dict[str, float]:
    """Run a publisher (`role.py`) in a process of its own, to its end; what it measured."""
    command = [sys.executable, "-m", "benchmarks.role", on.peer.name, kind, task, str(count), str(seconds)]
    log = on.directory / "publisher.log"
    answer = on.directory / "answer.json"
    answer.unlink(missing_ok=True)
    with running(command, on.environ, on.directory, log, answer) as process:
        try:
            code = process.wait(seconds + TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"publisher did not end within {seconds + TIMEOUT_S:.0f} s") from None
    if code != 0:
        raise RunFailed(f"publisher failed: {last_line(log)}")
    measured: dict[str, float] = json.loads(answer.read_text())
    return measured


@contextlib.contextmanager
def worker(on: Stage, plan: WorkerPlan) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The worker's processes as started; they may have children. All are ended on the way out."""
    log = on.directory / "worker.log"
    with contextlib.ExitStack() as stack:
        commands = on.peer.worker(plan)
        yield [stack.enter_context(running(command, on.environ, on.directory, log)) for command in commands]


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


@frozen
class Drain:
    """Rate in messages a second while all `processes` were at work; `missing` messages had not run at the time-out;
    `rss_peak` is in bytes, and includes the board's flags."""

    rate: float
    missing: int
    rss_peak: int


def drain(on: Stage, plan: WorkerPlan, count: int, timeout_s: float = TIMEOUT_S) -> Drain:
    """Start a worker on `count` waiting messages and time it until the last has run.

    The clock starts when each of the worker's processes has run something (start-up is not what is measured), provided
    that at least half of the messages still wait then; else when the first message has run. What had run by then
    is not counted.
    """
    with worker(on, plan) as started:
        at, done = _first_sight(on, started, plan.processes, count, timeout_s)
        low = 0
        while low < count and time.perf_counter() - at < timeout_s:
            time.sleep(_LOOK_EVERY_S)
            low = on.board.first_unset(low, count)
        elapsed_s = time.perf_counter() - at
        rss_peak = usage([process.pid for process in started]).rss_peak
    ran = count if low == count else on.board.done(count)
    return Drain((ran - done) / elapsed_s, count - ran, rss_peak)


def _first_sight(
    on: Stage, started: list[subprocess.Popen[bytes]], processes: int, count: int, timeout_s: float
) -> tuple[float, int]:
    """When the clock starts, and how many messages had run by then."""
    deadline = time.perf_counter() + timeout_s
    first: tuple[float, int] | None = None
    while time.perf_counter() < deadline:
        time.sleep(_LOOK_EVERY_S)
        now, done = time.perf_counter(), on.board.done(count)
        if done == 0:
            if any(process.poll() is not None for process in started):
                raise RunFailed(f"worker ended: {last_line(on.directory / 'worker.log')}")
            continue
        first = first or (now, done)
        if done > count // 2:
            return first
        if len(on.board.marks(count)) >= processes:
            return now, done
    if first is None:
        raise RunFailed(f"nothing ran within {timeout_s:.0f} s: {last_line(on.directory / 'worker.log')}")
    return first


def wait_first(on: Stage, timeout_s: float = TIMEOUT_S) -> None:
    """Return when message 0 has run."""
    deadline = time.monotonic() + timeout_s
    while on.board.first_unset(0, 1) == 0:
        if time.monotonic() > deadline:
            raise RunFailed(f"nothing ran within {timeout_s:.0f} s: {last_line(on.directory / 'worker.log')}")
        time.sleep(0.01)
