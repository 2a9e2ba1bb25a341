"""Celery on Redis."""

from __future__ import annotations

import os
import sys

from celery import Celery

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each

app = Celery("bench", broker=os.environ.get("BENCH_REDIS"), set_as_current=True)
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_acks_late=False,
    task_compression=None,
    worker_prefetch_multiplier=0,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
TASKS = {name: app.task(name=name)(work.TASKS[name]) for name in ("noop", "stamp", "sleep")}


def publish(plan: PublishPlan) -> Published:
    return publish_each(lambda index: TASKS[plan.task].delay(index), plan)


def worker(plan: WorkerPlan) -> list[Command]:
    pool = ["threads", "--concurrency", str(plan.concurrency)] if plan.concurrency > 1 else ["solo"]
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_", "worker", "--pool", *pool]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    return [[*command, *quiet, "--hostname", f"bench{number}@%h"] for number in range(plan.processes)]


PEER = Peer(
    name="celery",
    title="Celery on Redis",
    packages=("celery", "kombu", "redis", "hiredis"),
    settings="results ignored, early acks, unlimited prefetch, no rate limits, events, gossip, mingle or heartbeat; "
    "pool solo, one worker a process (threads for I/O)",
    durability="none (Redis in memory)",
    messages=8_000,
    concurrency=1,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
)
