"""taskiq on Kafka."""

from __future__ import annotations

import os
import sys

import uvloop
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.partitioner import DefaultPartitioner
from kafka.admin import NewTopic
from taskiq_aio_kafka import AioKafkaBroker

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each_async

_RUN = os.path.basename(os.environ["BENCH_DIR"])

broker = AioKafkaBroker(os.environ.get("BENCH_KAFKA", "127.0.0.1:9092"), NewTopic(_RUN, 8, 1))
# Its own defaults for these two are of a kafka-python that aiokafka can't use any more.
broker.configure_producer(acks="all", enable_idempotence=True, partitioner=DefaultPartitioner())
broker.configure_consumer(
    group_id=_RUN, auto_offset_reset="earliest", partition_assignment_strategy=(RoundRobinPartitionAssignor,)
)
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
    command = [sys.executable, "-m", "taskiq", "worker", "benchmarks.peers.kafka_taskiq_:broker"]
    limits = ["--max-async-tasks", str(plan.concurrency), "--max-threadpool-threads", str(plan.concurrency)]
    quiet = ["--no-parse", "--log-level", "ERROR", "--ack-type", "when_received"]
    return [[*command, "--workers", str(plan.processes), *limits, "--max-prefetch", "100", *quiet]]


PEER = Peer(
    name="kafka_taskiq",
    title="taskiq on Kafka",
    packages=("taskiq", "taskiq-aio-kafka", "aiokafka", "uvloop"),
    settings="8 partitions, no results, no parsing of arguments, prefetch 100, commits every 5 s",
    durability="acks=all, idempotent",
    messages=20_000,
    concurrency=100,
    publish=publish,
    worker=worker,
    tasks=frozenset(TASKS),
    needs_redis=False,
)
