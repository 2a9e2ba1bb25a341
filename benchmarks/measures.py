"""What is measured: every measure is one run of one peer, from nothing to nothing, that gives a few named numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attrs import field, frozen

from benchmarks.peer import SLEEP_S, Peer, WorkerPlan
from benchmarks.processes import usage
from benchmarks.runs import RunFailed, drain, publisher, stage, wait_first, worker

Numbers = dict[str, float]

_PUBLISH_S = 12.0
_IO_THREADS = 32
_IO_ASYNC = 200
_LATENCY_SAMPLES = 500
_IDLE_S = 5.0
_SETTLE_S = 2.0
_FLOOR_COUNT = 50_000
_BACKLOG = 10_000_000
_BACKLOG_TIMEOUT_S = 180.0
_STARTS = 5


@frozen
class Measure:
    """One row or column of the tables. `applies` says whether a peer can do it at all; the slowest is run but once."""

    name: str
    run: Callable[[Peer, bool], Numbers]
    applies: Callable[[Peer], bool] = field(default=lambda _peer: True)
    repeated: bool = True


def _drain(task: str, processes: int, kind: str = "publish") -> Callable[[Peer, bool], Numbers]:
    """Publish no-ops, then drain them. Both are measured; one after the other, never at the same time."""

    def run(peer: Peer, quick: bool) -> Numbers:
        count = peer.messages // (5 if quick else 1)
        with stage(peer, count) as on:
            published = publisher(on, kind, task, count, _PUBLISH_S)
            drained = drain(on, WorkerPlan(task, processes, peer.concurrency), int(published["count"]))
        return _complete(drained.missing, {"rate": drained.rate} | {f"publish_{k}": v for k, v in published.items()})

    return run


def _io(task: str, concurrency: int) -> Callable[[Peer, bool], Numbers]:
    """Tasks that wait for 10 ms: how much of what `concurrency` allows is reached."""
    ideal = concurrency / SLEEP_S

    def run(peer: Peer, quick: bool) -> Numbers:
        count = min(int(ideal * (1 if quick else 3)), peer.messages)
        with stage(peer, count) as on:
            published = publisher(on, "publish", task, count, _PUBLISH_S)
            drained = drain(on, WorkerPlan(task, 1, concurrency), int(published["count"]))
        return _complete(drained.missing, {"rate": drained.rate, "share": drained.rate / ideal})

    return run


def _complete(missing: int, numbers: Numbers) -> Numbers:
    """A run that did not end in time, or lost messages, has its rate all the same, and says how many were missing."""
    return numbers | ({"missing": missing} if missing else {})


def _latency(peer: Peer, quick: bool) -> Numbers:
    count = 1 + _LATENCY_SAMPLES // (5 if quick else 1)
    with stage(peer, count) as on, worker(on, WorkerPlan("stamp", 1, peer.concurrency)):
        return publisher(on, "latency", "stamp", count)


def _idle(peer: Peer, quick: bool) -> Numbers:
    """Memory and CPU of a worker that has run one task and now waits."""
    with stage(peer, 2) as on, worker(on, WorkerPlan("noop", 1, peer.concurrency)) as started:
        publisher(on, "publish", "noop", 2)
        wait_first(on)
        time.sleep(_SETTLE_S)
        pids = [process.pid for process in started]
        before, at = usage(pids), time.perf_counter()
        time.sleep(_IDLE_S / (5 if quick else 1))
        after, elapsed_s = usage(pids), time.perf_counter() - at
    return {
        "pss": after.pss,
        "rss": after.rss,
        "processes": after.processes,
        "cpu_share": (after.cpu_ns - before.cpu_ns) / 1e9 / elapsed_s,
    }


def _backlog(peer: Peer, quick: bool) -> Numbers:
    """A drain as in `drain_bulk_1`, of a backlog that is far larger than a worker's memory should be."""
    count = _BACKLOG // (20 if quick else 1)
    with stage(peer, count) as on:
        publisher(on, "bulk", "noop", count, _BACKLOG_TIMEOUT_S)
        drained = drain(on, WorkerPlan("noop", 1, peer.concurrency), count, _BACKLOG_TIMEOUT_S)
    return _complete(drained.missing, {"rate": drained.rate, "rss_peak": drained.rss_peak - count})


def _floors(peer: Peer, quick: bool) -> Numbers:
    """The least that publishing and draining can cost here, see `floors.py`."""
    with stage(peer, _FLOOR_COUNT) as on:
        count = _FLOOR_COUNT // (5 if quick else 1)
        command = [sys.executable, "-m", "benchmarks.floors", str(on.directory), str(count)]
        answer = subprocess.run(command, env=on.environ, cwd=on.directory, capture_output=True, text=True, check=True)
    floors: Numbers = json.loads(answer.stdout)
    return floors


def _start(peer: Peer, quick: bool) -> Numbers:
    """Time until `import taskq` and `taskq --help` are done, in s. The best of a few."""
    script = "from time import perf_counter as t; s = t(); import taskq; print(t() - s)"
    taskq = Path(sys.executable).with_name("taskq")
    imports, helps = [], []
    for _ in range(_STARTS):
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        imports.append(float(answer.stdout))
        began = time.perf_counter()
        subprocess.run([taskq, "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - began)
    return {"import_s": min(imports), "help_s": min(helps)}


def _can(task: str) -> Callable[[Peer], bool]:
    return lambda peer: task in peer.tasks


def _is_taskq(peer: Peer) -> bool:
    return peer.name == "taskq"


MEASURES = (
    Measure("drain_def_1", _drain("noop", 1)),
    Measure("drain_def_2", _drain("noop", 2)),
    Measure("drain_async_1", _drain("noop_async", 1), _can("noop_async")),
    Measure("drain_async_2", _drain("noop_async", 2), _can("noop_async")),
    Measure("drain_bulk_1", _drain("noop", 1, "bulk"), lambda peer: peer.publish_many is not None),
    Measure("latency", _latency),
    Measure("io_threads", _io("sleep", _IO_THREADS)),
    Measure("io_async", _io("sleep_async", _IO_ASYNC), _can("sleep_async")),
    Measure("idle", _idle),
    Measure("backlog", _backlog, _is_taskq, repeated=False),
    Measure("floors", _floors, _is_taskq),
    Measure("start", _start, _is_taskq),
)


def attempt(measure: Measure, peer: Peer, quick: bool) -> Numbers | str:
    """One run: its numbers, or why there are none."""
    try:
        return measure.run(peer, quick)
    except (RunFailed, OSError, subprocess.CalledProcessError) as failure:
        return str(failure)
