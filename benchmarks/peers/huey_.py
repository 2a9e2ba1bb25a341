"""Huey on Redis."""

from __future__ import annotations

import os
import sys

from huey import RedisHuey

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each

huey = RedisHuey("bench", url=os.environ.get("BENCH_REDIS"), results=False)
TASKS = {name: huey.task(name=name)(work.TASKS[name]) for name in ("noop", "stamp", "sleep")}


def publish(plan: PublishPlan) -> Published:
    return publish_each(TASKS[plan.task], plan)


def worker(plan: WorkerPlan) -> list[Command]:
    kind, workers = ("process", plan.processes) if plan.concurrency == 1 else ("thread", plan.concurrency)
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey_.huey"]
    return [[*command, "-k", kind, "-w", str(workers), "-n", "-C", "-q"]]


PEER = Peer(
    name="huey",
    title="Huey on Redis",
    packages=("huey", "redis", "hiredis"),
    settings="no results, blocking pop, no periodic tasks; process workers (threads for I/O)",
    durability="none (Redis in memory)",
    messages=20_000,
    concurrency=1,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
)
