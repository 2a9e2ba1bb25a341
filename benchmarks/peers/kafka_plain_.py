"""The floor on Kafka: loops around confluent-kafka that do no more than publish, decode, call and commit.

`python -m benchmarks.peers.kafka_plain_ TASK` is the worker: one thread, one invocation after the other.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks import work
from benchmarks.peer import Command, Peer, Published, PublishPlan, WorkerPlan, publish_each

_BULK = 10_000
_AT_ONCE = 4096
_COMMIT_S = 0.1
_PARTITIONS = 8
_RUN = os.path.basename(os.environ["BENCH_DIR"])
_SERVERS: dict[str, Any] = {"bootstrap.servers": os.environ.get("BENCH_KAFKA", "127.0.0.1:9092")}

_encode = msgspec.msgpack.Encoder().encode


def _value(task: str, index: int) -> bytes:
    return _encode({"task": task, "id": uuid.uuid4().bytes, "args": [index]})


def _producer(**more: int) -> Producer:
    admin = AdminClient(_SERVERS)
    admin.create_topics([NewTopic(_RUN, _PARTITIONS, 1)])[_RUN].result(30)
    return Producer({**_SERVERS, "acks": "all", "enable.idempotence": True, **more})


@contextmanager
def sender(task: str) -> Generator[Callable[[int], object]]:
    """Each waits for the report of its own; one thread takes the reports."""
    producer, ended = _producer(**{"linger.ms": 0, "sticky.partitioning.linger.ms": 0}), threading.Event()

    def take_reports() -> None:
        while not ended.is_set():
            producer.poll(0.1)

    def send(index: int) -> None:
        done = threading.Event()
        producer.produce(_RUN, _value(task, index), on_delivery=lambda error, message: done.set())
        done.wait()

    thread = threading.Thread(target=take_reports)
    thread.start()
    yield send
    ended.set()
    thread.join()


def publish(plan: PublishPlan) -> Published:
    with sender(plan.task) as send:
        return publish_each(send, plan)


def publish_many(task: str, count: int) -> None:
    producer = _producer(**{"sticky.partitioning.linger.ms": 0})
    for start in range(0, count, _BULK):
        for index in range(start, min(start + _BULK, count)):
            producer.produce(_RUN, _value(task, index))
        producer.flush()


def work_on(task: str) -> None:
    """Decode and call, and commit what is done ten times a second, without waiting for the answer."""
    decode, function = msgspec.msgpack.Decoder().decode, work.TASKS[task]
    consumer = Consumer({**_SERVERS, "group.id": _RUN, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.subscribe([_RUN])
    done: dict[int, int] = {}
    commit_at = 0.0
    while True:
        for message in consumer.consume(_AT_ONCE, 0.1):
            function(*decode(message.value() or b"")["args"])
            done[message.partition()] = message.offset() + 1  # type: ignore[index, operator]
        if done and time.monotonic() > commit_at:
            consumer.commit(offsets=[TopicPartition(_RUN, *one) for one in done.items()], asynchronous=True)
            done.clear()
            commit_at = time.monotonic() + _COMMIT_S


def worker(plan: WorkerPlan) -> list[Command]:
    return [[sys.executable, "-m", "benchmarks.peers.kafka_plain_", plan.task]]


PEER = Peer(
    name="kafka_plain",
    title="plain confluent-kafka",
    packages=("confluent-kafka",),
    settings="8 partitions; a thread that takes reports; a consumer loop that decodes, calls and commits every 100 ms",
    durability="acks=all, idempotent",
    messages=300_000,
    concurrency=1,
    publish=publish,
    publish_many=publish_many,
    sender=sender,
    worker=worker,
    tasks=frozenset(("noop",)),
    needs_redis=False,
)

if __name__ == "__main__":
    work_on(sys.argv[1])
