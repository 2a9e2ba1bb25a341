"""For tests that publish: functions to make tasks of, and what has been published."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel

from taskq import TaskQ
from taskq.broker.port import Record, TopicPartition
from taskq.decorators import Task
from taskq.message import decode_envelope


def records(app: TaskQ, topic: str = "default") -> list[Record]:
    reader, partitions = app.broker.reader(), range(app.broker.admin().partitions(topic))
    return [record for number in partitions for record in reader.read(TopicPartition(topic, number), 0)]


def topics(app: TaskQ) -> list[str]:
    return app.broker.admin().topics()


def calls(app: TaskQ, task: Task[Any, Any], topic: str = "default") -> list[Any]:
    """The arguments of what was published."""
    return [task.decode_args(decode_envelope(record.value)) for record in records(app, topic)]


def add(a: int, b: int = 10) -> int:
    return a + b


async def aadd(a: int, b: int = 10) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b
