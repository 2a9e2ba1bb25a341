"""Huey on SQLite: the nearest embedded peer, for it has no server either."""

from __future__ import annotations

import os
import sys

from huey import SqliteHuey

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each

FILE = os.path.join(os.environ["BENCH_DIR"], "huey.db")
huey = SqliteHuey("bench", filename=FILE, fsync=False, cache_mb=64, results=False)
TASKS = {name: huey.task(name=name)(work.TASKS[name]) for name in ("noop", "stamp", "sleep")}


def publish(plan: PublishPlan) -> Published:
    return publish_each(TASKS[plan.task], plan)


def worker(plan: WorkerPlan) -> list[Command]:
    kind, workers = ("process", plan.processes) if plan.concurrency == 1 else ("thread", plan.concurrency)
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey_sqlite_.huey"]
    polling = ["-d", "0.001", "-m", "0.01"]
    return [[*command, "-k", kind, "-w", str(workers), *polling, "-n", "-C", "-q"]]


PEER = Peer(
    name="huey_sqlite",
    title="Huey on SQLite",
    packages=("huey",),
    settings="no results, WAL, fsync=False, 64 MB cache, polls every 1 to 10 ms; process workers (threads for I/O)",
    durability="survives a process crash, not a power cut (fsync=False)",
    messages=40_000,
    concurrency=1,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
    needs_redis=False,
)
