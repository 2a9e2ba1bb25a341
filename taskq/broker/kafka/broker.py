"""What `connect` opens for `kafka://...`."""

# What the client's documentation imports from confluent_kafka.admin is not re-exported as type checkers want it.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar
from weakref import WeakSet

from confluent_kafka.admin import AdminClient

from taskq.broker.kafka.admin import KafkaAdmin
from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.consumer import KafkaConsumer
from taskq.broker.kafka.follower import KafkaFollower
from taskq.broker.kafka.forks import leave, watch
from taskq.broker.kafka.lookup import Lookup
from taskq.broker.kafka.producer import KafkaProducer, Outbox
from taskq.broker.kafka.reader import KafkaReader
from taskq.broker.kafka.stats import Stats
from taskq.broker.kafka.topics import Topics
from taskq.broker.port import PARTITIONS_DEFAULT, Lost, TopicPartition
from taskq.errors import BrokerUnavailable
from taskq.metrics import metrics
from taskq.topics import TopicConfig
from taskq.urls import parse_kafka

_Part = TypeVar("_Part", KafkaConsumer, KafkaReader, KafkaFollower)


class KafkaBroker:
    """See `taskq.broker.port.Broker`. What is opened of it connects; it does not by itself."""

    is_remote = True

    def __init__(
        self,
        url: str,
        partitions_default: int = PARTITIONS_DEFAULT,
        topics: Mapping[str, TopicConfig] = MappingProxyType({}),
        *,
        replication: int = -1,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`settings` are librdkafka's; those in `url` are stronger."""
        parsed = parse_kafka(url)
        self._conf = Conf(parsed.servers, {**settings, **parsed.settings})
        self._lock = threading.Lock()
        self._admin: AdminClient | None = None
        self._is_closed = False
        self._parts: WeakSet[KafkaConsumer | KafkaReader | KafkaFollower] = WeakSet()
        """To be closed. A consumer that is open lives by its threads; what is closed goes when its owner does."""
        self._topics = Topics(self._conf, self._client, partitions_default, replication, topics)
        self._stats = Stats()
        self._lookup = Lookup(self._conf, self._topics, self._client)
        self._outbox = Outbox(self._conf, self._stats)
        metrics.add_source(self._stats.samples)
        watch(self)

    def begin_anew(self) -> None:
        """See `Forkable`. A consumer of the parent's stays the parent's."""
        leave(self._admin)
        self._lock = threading.Lock()
        self._admin = None

    @property
    def url(self) -> str:
        return self._conf.shown

    @property
    def unsynced_s(self) -> float:
        """What is acknowledged is on as many brokers as the topic asks for; when they sync is theirs to know."""
        return 0.0

    def producer(self) -> KafkaProducer:
        self._check_open()
        _ = self._outbox.client  # begun now: it takes half a second until brokers have given it an id
        return KafkaProducer(self._conf, self._outbox, self._topics)

    def consumer(self, group: str, topics: Sequence[str], *, offset_reset: str = "earliest") -> KafkaConsumer:
        self._check_open()
        return self._keep(KafkaConsumer(self._lookup, self._stats, group, topics, is_strict=offset_reset == "error"))

    def reader(self) -> KafkaReader:
        self._check_open()
        return self._keep(KafkaReader(self._lookup))

    def follower(self, tp: TopicPartition, lost: Callable[[Lost], object]) -> KafkaFollower:
        self._check_open()
        return self._keep(KafkaFollower(self._lookup, tp))

    def admin(self) -> KafkaAdmin:
        self._check_open()
        return KafkaAdmin(self._lookup)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            parts = list(self._parts)
        for part in parts:
            part.close()
        self._outbox.close()
        with self._lock:
            self._admin = None  # its threads and files go with it
        metrics.remove_source(self._stats.samples)

    def _keep(self, part: _Part) -> _Part:
        """Have it closed with the broker, which may have been closed while it was opened."""
        with self._lock:
            if not self._is_closed:
                self._parts.add(part)
                return part
        part.close()
        raise self._closed()

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._closed()

    def _closed(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self.url} has been closed")

    def _client(self) -> AdminClient:
        """The admin client, which threads share."""
        with self._lock:
            self._check_open()
            if self._admin is None:
                with self._conf.telling("opening it"):
                    self._admin = AdminClient(self._conf.admin(), logger=log)
            return self._admin
