"""What a group gave up on: the record as it was, with headers that say why. Pure.

A dead letter goes to `<group>.dead` with the original's key, value and headers, byte for byte, so that it can be
published again as it was. The headers added are `taskq-dead-` and: reason, task, type, message, traceback, group,
topic, partition, offset, time (milliseconds); all text.
"""

from __future__ import annotations

from taskq.broker.port import OWN_HEADERS, Message, Record, TopicPartition
from taskq.worker.retries import Failure

PREFIX = f"{OWN_HEADERS}dead-"


def dead_letter(group: str, task: str, tp: TopicPartition, record: Record, failure: Failure, now_ms: int) -> Message:
    """The message to publish to the group's dead letters. `task` is "" if the record names none."""
    said = {
        "reason": failure.reason,
        "task": task,
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
        "group": group,
        "topic": tp.topic,
        "partition": str(tp.partition),
        "offset": str(record.offset),
        "time": str(now_ms),
    }
    added = tuple((PREFIX + name, text.encode(errors="backslashreplace")) for name, text in said.items())
    return Message(record.value, record.key, record.headers + added)
