"""Dramatiq on Redis."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.asyncio import AsyncIO

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each

broker = RedisBroker(url=os.environ.get("BENCH_REDIS"), middleware=[AsyncIO()])
dramatiq.set_broker(broker)
TASKS = {name: dramatiq.actor(function, actor_name=name) for name, function in work.TASKS.items()}


def publish(plan: PublishPlan) -> Published:
    return publish_each(TASKS[plan.task].send, plan)


def worker(plan: WorkerPlan) -> list[Command]:
    settings = ["env", "dramatiq_queue_prefetch=1000", "dramatiq_worker_timeout=10"]
    command = [*settings, sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq_:broker"]
    return [[*command, "--processes", str(plan.processes), "--threads", str(plan.concurrency)]]


PEER = Peer(
    name="dramatiq",
    title="Dramatiq on Redis",
    packages=("dramatiq", "redis", "hiredis"),
    settings="no results, no middleware (AsyncIO only), threads, queue prefetch 1000, polls at least every 10 ms",
    durability="none (Redis in memory)",
    messages=20_000,
    concurrency=8,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
)
