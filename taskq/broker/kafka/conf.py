"""What librdkafka is told. Its settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from attrs import field, frozen
from confluent_kafka import KafkaError, KafkaException

from taskq.broker.kafka.errors import Refusals, meaning
from taskq.broker.port import MESSAGE_BYTES_MAX
from taskq.errors import ConfigError, TaskqError
from taskq.urls import ASSIGNOR

AGAIN_S: Final = 60.0
"""How soon the same line is logged again."""


class Sparing(logging.Filter):
    """Drops what was said a moment ago: librdkafka repeats itself many times a second while a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is news. How long what failed had taken makes no difference."""
        text = record.getMessage().partition(" (after ")[0]
        now = time.monotonic()
        if now < self._said.get(text, 0.0):
            return False
        if len(self._said) > 100:
            self._said.clear()
        self._said[text] = now + AGAIN_S
        return True


log = logging.getLogger("taskq.kafka")
"""What librdkafka has to say."""
log.addFilter(Sparing())

ENVELOPE_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 256 * 1024
"""A record with all that is around it: taskq's own headers, which don't count, the batch, the request."""

PATIENCE_MS: Final = 10_000
"""How long to wait for an answer. librdkafka's own 60 s are long for somebody who waits for a page or a command."""

_ALL: Final = {
    "client.id": "taskq",
    "log.connection.close": "false",  # brokers close idle connections, and all is well
    "reconnect.backoff.max.ms": "1000",  # of a broker that comes back, workers should hear soon
    "socket.keepalive.enable": "true",
    "socket.timeout.ms": str(PATIENCE_MS),
    "statistics.interval.ms": "5000",
    "topic.metadata.refresh.interval.ms": "10000",  # how soon new partitions are seen
}

MAX_POLL_MS: Final = 300_000
"""librdkafka's default of `max.poll.interval.ms`."""

_PRODUCER: Final = {
    "linger.ms": "0",  # who publishes waits; under load batches fill while others are on their way
    "topic.metadata.propagation.max.ms": "10000",  # of a topic that was deleted, who publishes to it should hear soon
    "sticky.partitioning.linger.ms": "0",  # what has no key is spread over all partitions, and so all workers
    "partitioner": "murmur2_random",  # Java's: a key is in the same partition whoever publishes
    "message.max.bytes": str(ENVELOPE_BYTES_MAX),
    "queue.buffering.max.kbytes": str(64 * 1024),
    "queue.buffering.max.messages": "100000",
    "delivery.timeout.ms": "120000",  # as Java's
}

_FETCHER: Final = {
    "fetch.error.backoff.ms": "100",
    "fetch.queue.backoff.ms": "5",
    "queued.min.messages": "10000",
    "queued.max.messages.kbytes": str(16 * 1024),
    "fetch.wait.max.ms": "500",
}

_MEMBER: Final = {
    "heartbeat.interval.ms": "1000",  # how soon a member hears that another has joined
    "partition.assignment.strategy": ASSIGNOR,
    "session.timeout.ms": "45000",
    "socket.max.fails": "0",  # a commit that waits behind a join is late, and no reason to connect anew
}

_CLASSIC_ONLY: Final = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")
"""Settings that the newer group protocol of Kafka 4 does not know: there the brokers decide."""

_PRODUCERS_OWN: Final = (
    "batch.", "compression.", "delivery.", "linger.", "max.in.flight", "message.send.", "message.timeout.",
    "partitioner", "queue.buffering.", "queuing.", "request.timeout.", "retries", "sticky.",
)  # fmt: skip
_CONSUMERS_OWN: Final = (
    "check.crcs", "consume.", "fetch.", "group.", "heartbeat.", "isolation.", "max.partition.fetch.", "max.poll.",
    "offset.", "partition.assignment.", "queued.", "session.",
)  # fmt: skip
_FETCHERS: Final = ("check.crcs", "fetch.", "isolation.", "max.partition.fetch.", "queued.")
"""Those of a consumer's that are about reading."""

NO_STATISTICS: Final = {"statistics.interval.ms": "0"}


@frozen
class Conf:
    """What is said for one broker."""

    servers: tuple[str, ...]
    given: Mapping[str, str] = field(repr=False)
    """By the URL and the project."""
    refusals: Refusals = field(factory=Refusals, repr=False, eq=False)

    @property
    def shown(self) -> str:
        """The broker's URL without what may be secret."""
        return f"kafka://{','.join(self.servers)}"

    @property
    def max_poll_s(self) -> float:
        """How long a member may take over anything before the group goes on without it."""
        return self._seconds("max.poll.interval.ms", MAX_POLL_MS)

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer of the brokers before it is an error."""
        return self._seconds("socket.timeout.ms", PATIENCE_MS)

    def _seconds(self, name: str, default_ms: int) -> float:
        text = self.given.get(name, str(default_ms))
        if not text.isdigit():
            raise ConfigError(f"{self.shown}: {name} {text!r} is not a number of milliseconds")
        return int(text) / 1000

    def meaning(self, error: KafkaError | KafkaException, what: str) -> TaskqError:
        """An error of librdkafka as one of ours. `what` says what was tried."""
        return meaning(error, f"{what}, on {self.shown}", self.refusals)

    @contextmanager
    def telling(self, what: str) -> Generator[None]:
        """Errors of librdkafka within are raised as ours, and those of Python's client for settings that it does not
        take."""
        try:
            yield
        except KafkaException as error:
            raise self.meaning(error, what) from error
        except (TypeError, ValueError) as error:  # it names the setting, and not what it was set to
            raise ConfigError(f"{what}, on {self.shown}: {error}; leave that setting out") from error

    @property
    def is_classic(self) -> bool:
        """Whether groups are led by one of their members, as before Kafka 4."""
        return self.given.get("group.protocol", "classic").lower() != "consumer"

    def admin(self) -> dict[str, Any]:
        return self._common(_CONSUMERS_OWN + _PRODUCERS_OWN, _ALL) | NO_STATISTICS

    def producer(self) -> dict[str, Any]:
        return self._common(_CONSUMERS_OWN, _ALL | _PRODUCER) | {"acks": "all", "enable.idempotence": "true"}

    def fetcher(self) -> dict[str, Any]:
        """A consumer that belongs to no group: it is told what to read. Its group is a name that is never used."""
        own = tuple(name for name in _CONSUMERS_OWN if name not in _FETCHERS)
        return self._common(_PRODUCERS_OWN + own, _ALL | _FETCHER) | _reads("taskq") | NO_STATISTICS

    def member(self, group: str) -> dict[str, Any]:
        """A consumer that belongs to a group, and reads nothing."""
        told = self._common(_PRODUCERS_OWN, _ALL | _MEMBER) | _reads(group)
        if not self.is_classic:
            for name in _CLASSIC_ONLY:
                told.pop(name, None)
            told.setdefault("group.remote.assignor", "range")  # each topic by itself; see members.py
        return told

    def _common(self, without: tuple[str, ...], defaults: Mapping[str, str]) -> dict[str, Any]:
        given = {name: value for name, value in self.given.items() if not name.startswith(without)}
        own = {"bootstrap.servers": ",".join(self.servers), "error_cb": self.refusals.hear}
        return {**defaults, **given, **own}


def _reads(group: str) -> dict[str, str]:
    return {
        "group.id": group,
        "enable.auto.commit": "false",
        "enable.auto.offset.store": "false",
        "auto.offset.reset": "error",  # what is gone is told
        "allow.auto.create.topics": "false",
        "enable.partition.eof": "false",
    }
