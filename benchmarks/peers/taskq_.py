"""taskq itself, on its embedded log."""

from __future__ import annotations

import os
import sys

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each
from taskq import TaskQ

_BULK = 10_000

app = TaskQ("bench", broker=os.path.join(os.environ["BENCH_DIR"], "log"))
TASKS = {name: app.task(name=name)(function) for name, function in work.TASKS.items()}


def publish(plan: PublishPlan) -> Published:
    with app:
        return publish_each(TASKS[plan.task].delay, plan)


def publish_many(task: str, count: int) -> None:
    with app:
        for start in range(0, count, _BULK):
            TASKS[task].map([(index,) for index in range(start, min(start + _BULK, count))])


def worker(plan: WorkerPlan) -> list[Command]:
    command = [sys.executable, "-m", "taskq", "worker", "-A", "benchmarks.peers.taskq_:app", "-g", "default"]
    return [[*command, "-c", str(plan.concurrency), "-p", str(plan.processes), "--metrics-port", "0"]]


PEER = Peer(
    name="taskq",
    title="taskq, embedded",
    packages=("taskq", "msgspec"),
    settings="defaults (8 partitions, concurrency 16, metrics on)",
    durability="survives a process crash; a power cut takes at most the last 100 ms (interval:100)",
    messages=500_000,
    concurrency=16,
    publish=publish,
    publish_many=publish_many,
    worker=worker,
    tasks=frozenset(TASKS),
    needs_redis=False,
)
