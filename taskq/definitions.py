"""Every metric taskq has: its name on the page, its labels, what it says."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

_BOUNDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PUBLISH_BOUNDS = (5e-6, 1e-5, 2.5e-5, *_BOUNDS)
_TASK_BOUNDS = (*_BOUNDS, 30.0, 60.0, 120.0, 300.0, 600.0)


@frozen
class Definition:
    """What a metric is: its name on the page, its labels, and how series of several processes become one."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    merge: Literal["sum", "max"] = "sum"
    """`max` for what several processes may see of the same thing, such as a partition that is changing hands."""
    buckets: tuple[float, ...] = ()
    """Upper bounds in seconds, inclusive. Histograms only."""


PUBLISHED = Definition("taskq_published_total", "counter", "Invocations published.", ("topic", "task"))
PUBLISH_SECONDS = Definition(
    "taskq_publish_seconds", "histogram", "Time a publish call took.", ("topic",), buckets=_PUBLISH_BOUNDS
)
EXECUTIONS = Definition(
    "taskq_executions_total", "counter", "Invocations finished, by outcome.", ("group", "task", "outcome")
)
EXECUTION_SECONDS = Definition(
    "taskq_execution_seconds", "histogram", "Time a task ran.", ("group", "task"), buckets=_TASK_BOUNDS
)
WAIT_SECONDS = Definition(
    "taskq_wait_seconds", "histogram", "Time from publish to start.", ("group", "task"), buckets=_TASK_BOUNDS
)
RUNNING = Definition("taskq_running", "gauge", "Invocations running now.", ("group", "task"))
COMMITS = Definition("taskq_commits_total", "counter", "Commits of progress.", ("group",))
REBALANCES = Definition("taskq_rebalances_total", "counter", "Changes of the partitions held.", ("group",))
SKIPPED_OFFSETS = Definition(
    "taskq_skipped_offsets_total",
    "counter",
    "Offsets passed over because retention had removed them.",
    ("group", "topic", "partition"),
)
OVERDUE = Definition(
    "taskq_overdue_total", "counter", "Runs in threads that went on over their time limit.", ("group", "task")
)
BACKLOG = Definition("taskq_backlog", "gauge", "Invocations not finished.", ("group", "topic", "partition"), "max")
BACKLOG_AGE_SECONDS = Definition(
    "taskq_backlog_age_seconds",
    "gauge",
    "Age of the oldest unfinished invocation.",
    ("group", "topic", "partition"),
    "max",
)
STALLED = Definition(
    "taskq_stalled",
    "gauge",
    "1 while a partition waits for its slowest invocation.",
    ("group", "topic", "partition"),
    "max",
)
DELAYED = Definition("taskq_delayed", "gauge", "Invocations that wait until they are due, by rung.", ("topic",), "sum")
DEAD_LETTERS = Definition("taskq_dead_letters", "gauge", "Dead letters kept.", ("group",), "max")
LOG_UNSYNCED_SECONDS = Definition(
    "taskq_log_unsynced_seconds",
    "gauge",
    "Age of the oldest record that this worker published and that may not be on stable storage yet.",
    ("group",),
    "max",
)
LOOP_BLOCKED_SECONDS = Definition(
    "taskq_loop_blocked_seconds", "gauge", "For how long the event loop has not answered.", ("group",), "max"
)
LOG_BYTES = Definition("taskq_log_bytes", "gauge", "Bytes stored.", ("topic", "partition"), "max")
WORKER_INFO = Definition(
    "taskq_worker_info", "gauge", "Always 1; the labels say who works.", ("group", "version", "broker"), "max"
)

KAFKA_REQUEST_SECONDS = Definition(
    "taskq_kafka_request_seconds",
    "gauge",
    "How long a Kafka broker took to answer, of late.",
    ("client", "broker", "quantile"),
    "max",
)
KAFKA_BROKER_UP = Definition(
    "taskq_kafka_broker_up", "gauge", "1 while connected to that Kafka broker.", ("client", "broker"), "max"
)
KAFKA_SENT_BYTES = Definition("taskq_kafka_sent_bytes", "gauge", "Sent since its start.", ("client", "broker"))
KAFKA_RECEIVED_BYTES = Definition(
    "taskq_kafka_received_bytes", "gauge", "Received since its start.", ("client", "broker")
)
KAFKA_REQUEST_ERRORS = Definition(
    "taskq_kafka_request_errors",
    "gauge",
    "Requests that failed or timed out since its start.",
    ("client", "broker"),
)
KAFKA_WAITING_MESSAGES = Definition(
    "taskq_kafka_waiting_messages", "gauge", "Records sent and not acknowledged yet.", ("client",)
)
KAFKA_WAITING_BYTES = Definition(
    "taskq_kafka_waiting_bytes", "gauge", "Bytes sent and not acknowledged yet.", ("client",)
)
KAFKA_GROUP_REBALANCES = Definition(
    "taskq_kafka_group_rebalances", "gauge", "Rebalances of its group since it joined.", ("client",)
)

DEFINITIONS = {
    definition.name: definition for definition in list(globals().values()) if isinstance(definition, Definition)
}
