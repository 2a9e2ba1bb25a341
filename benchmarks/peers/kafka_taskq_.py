"""taskq on Kafka."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each
from taskq import TaskQ
from taskq.cli import run

_BULK = 10_000
_RUN = os.path.basename(os.environ["BENCH_DIR"])

app = TaskQ("bench", broker=f"kafka://{os.environ.get('BENCH_KAFKA', '127.0.0.1:9092')}")
TASKS = {name: app.task(name=name, topic=_RUN, group=_RUN)(function) for name, function in work.TASKS.items()}


def publish(plan: PublishPlan) -> Published:
    with app:
        return publish_each(TASKS[plan.task].delay, plan)


@contextmanager
def sender(task: str) -> Generator[Callable[[int], object]]:
    with app:
        yield TASKS[task].delay


def publish_many(task: str, count: int) -> None:
    with app:
        for start in range(0, count, _BULK):
            TASKS[task].map([(index,) for index in range(start, min(start + _BULK, count))])


def worker(plan: WorkerPlan) -> list[Command]:
    command = [sys.executable, "-m", "benchmarks.peers.kafka_taskq_", "worker"]
    return [[*command, "-c", str(plan.concurrency), "-p", str(plan.processes), "--metrics-port", "0"]]


PEER = Peer(
    name="kafka_taskq",
    title="taskq on Kafka",
    packages=("taskq", "confluent-kafka"),
    settings="defaults (8 partitions, concurrency 16, metrics on, commits every 100 ms)",
    durability="acks=all, idempotent",
    messages=300_000,
    concurrency=16,
    publish=publish,
    publish_many=publish_many,
    sender=sender,
    worker=worker,
    tasks=frozenset(TASKS),
    needs_redis=False,
)

if __name__ == "__main__":  # the harness does not know what a run's group is called
    sys.exit(run([*sys.argv[1:], "-A", "benchmarks.peers.kafka_taskq_:app", "-g", _RUN]))
