"""taskiq on Redis."""

from __future__ import annotations

import os
import sys

import uvloop
from taskiq_redis import RedisStreamBroker

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each_async

broker = RedisStreamBroker(os.environ.get("BENCH_REDIS", "redis://"))
TASKS = {name: broker.task(task_name=name)(function) for name, function in work.TASKS.items()}


def publish(plan: PublishPlan) -> Published:
    async def main() -> Published:
        await broker.startup()
        try:
            return await publish_each_async(TASKS[plan.task].kiq, plan)
        finally:
            await broker.shutdown()

    return uvloop.run(main())


def worker(plan: WorkerPlan) -> list[Command]:
    command = [sys.executable, "-m", "taskiq", "worker", "benchmarks.peers.taskiq_:broker"]
    limits = ["--max-async-tasks", str(plan.concurrency), "--max-threadpool-threads", str(plan.concurrency)]
    quiet = ["--no-parse", "--log-level", "ERROR", "--ack-type", "when_received"]
    return [[*command, "--workers", str(plan.processes), *limits, "--max-prefetch", "100", *quiet]]


PEER = Peer(
    name="taskiq",
    title="taskiq on Redis",
    packages=("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"),
    settings="streams, no results, ack when received, no parsing of arguments, prefetch 100, uvloop",
    durability="none (Redis in memory)",
    messages=20_000,
    concurrency=100,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
)
