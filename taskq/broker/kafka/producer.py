"""Publishing: a call returns when the brokers have acknowledged, whatever the number of threads that publish.

All producers of an opened broker share one client of librdkafka (`Outbox`), so that what many threads publish travels
together. One thread takes the delivery reports off it as they come; whoever published waits for his own. The client is
idempotent: what is sent again after an error is not there twice, and order is kept within a partition.

What is being sent is bounded by `queue.buffering.max.*`: who would exceed it waits until there is room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from attrs import define, field
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import UNKNOWN_TOPIC
from taskq.broker.kafka.forks import leave, watch
from taskq.broker.kafka.stats import Stats
from taskq.broker.kafka.topics import Topics
from taskq.broker.limits import check_size
from taskq.broker.port import Headers, Message, WouldBlock
from taskq.errors import BrokerUnavailable, ConfigError

REPORTS_S: Final = 0.2
"""How long to wait for delivery reports at a time; one that comes ends it."""

IDLE_S: Final = 5.0
"""How long after the last report the thread goes on, to see errors and to serve statistics."""

ROOM_S: Final = 0.02
"""How long to wait for room at a time."""


class Client(Producer):
    """A client of librdkafka."""

    error: KafkaError | None = None
    """Why it can do no more."""


class Outbox:
    """The client of librdkafka. It begins anew in a forked child, where the parent's has no threads."""

    def __init__(self, conf: Conf, stats: Stats) -> None:
        self._conf = conf
        self._stats = stats
        self._wanted = threading.Condition()
        self._client: Client | None = None
        self._is_closed = False
        self._unreported = 0
        self._thread: threading.Thread | None = None
        watch(self)

    def begin_anew(self) -> None:
        """See `Forkable`."""
        leave(self._client)
        self._wanted = threading.Condition()
        self._client = self._thread = None
        self._unreported = 0

    @property
    def client(self) -> Client:
        with self._wanted:
            if self._is_closed:
                raise BrokerUnavailable(f"{self._conf.shown} has been closed")
            return self._client or self._begin()

    def _begin(self) -> Client:
        told = self._conf.producer() | {"stats_cb": self._stats.of("producer")}
        with self._conf.telling("opening a producer"):
            self._client = client = Client(told, logger=log)
        self._thread = threading.Thread(
            target=self._take_reports, args=(client,), name="taskq-kafka-reports", daemon=True
        )
        self._thread.start()
        return client

    def expect(self, count: int) -> None:
        """So many reports will come."""
        with self._wanted:
            self._unreported += count
            self._wanted.notify()

    def reported(self, count: int) -> None:
        with self._wanted:
            self._unreported -= count

    def _take_reports(self, client: Client) -> None:
        while not self._is_closed:
            try:
                client.poll(REPORTS_S)
            except KafkaException as error:  # it can do no more
                self._give_up(client, error)
                return
            with self._wanted:
                if not self._unreported and not self._is_closed:
                    self._wanted.wait(IDLE_S)

    def _give_up(self, client: Client, error: KafkaException) -> None:
        """Have all that waits for this client told that it failed. Who publishes next begins with another."""
        client.error = error.args[0]
        with self._wanted:
            if self._client is client:
                self._client = None
        log.error("publishing to %s has to begin anew: %s", self._conf.shown, error)
        while len(client):
            try:
                client.purge()
                client.poll(REPORTS_S)
            except KafkaException as again:
                log.debug("%s", again)

    def close(self) -> None:
        """What is being sent may still arrive: whoever sent it waits for that."""
        with self._wanted:
            if self._is_closed:
                return
            self._is_closed = True
            self._wanted.notify_all()
            client, thread = self._client, self._thread
        if client is not None and thread is not None:
            client.flush(self._conf.patience_s)
            thread.join(self._conf.patience_s)


@define(eq=False)
class _Delivery:
    """Of records that are sent together."""

    left: int
    error: KafkaError | None = None
    """The first one, but for those of `homeless`."""
    homeless: list[Message] = field(factory=list)
    """What found no topic or partition of that name: it was deleted, and may have been made anew."""
    place: tuple[int, int] = (-1, -1)
    """Partition and offset of the last one that was reported."""
    done: threading.Event = field(factory=threading.Event)

    def report(self, sent: Message, error: KafkaError | None, message: KafkaMessage) -> None:
        """Called in the thread that takes reports, once for each record. The client's `message` has no headers."""
        if error is None:
            self.place = message.partition(), message.offset()  # type: ignore[assignment]
        elif error.code() in UNKNOWN_TOPIC:
            self.homeless.append(sent)
        else:
            self.error = self.error or error
        self.left -= 1
        if not self.left:
            self.done.set()


class KafkaProducer:
    """See `taskq.broker.port.Producer`."""

    def __init__(self, conf: Conf, outbox: Outbox, topics: Topics) -> None:
        self._conf = conf
        self._outbox = outbox
        self._topics = topics

    def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
    ) -> tuple[int, int]:
        check_size(topic, value, key, headers)
        if not wait:
            raise WouldBlock
        return self._send(topic, [Message(value, key, headers)])

    def send_many(self, topic: str, messages: Sequence[Message]) -> None:
        for value, key, headers in messages:
            check_size(topic, value, key, headers)
        self._topics.ensure(topic)
        if messages:
            self._send(topic, messages)

    def close(self) -> None:
        """Who sent something has waited until it was there."""

    def _send(self, topic: str, messages: Sequence[Message]) -> tuple[int, int]:
        self._topics.ensure(topic)
        delivery = self._deliver(topic, messages)
        deadline = time.monotonic() + self._conf.patience_s
        while delivery.homeless and delivery.error is None and time.monotonic() < deadline:
            self._topics.forget(topic)  # now it is as on first use
            self._topics.ensure(topic)
            time.sleep(ROOM_S)  # the client may not have heard of that yet
            delivery = self._deliver(topic, delivery.homeless)
        if delivery.error is None:
            if delivery.homeless:
                raise self._topics.missing(topic)
            return delivery.place
        self._topics.forget(topic)
        if delivery.error.code() == KafkaError.INVALID_RECORD:
            raise ConfigError(f"topic {topic!r} is compacted: what is sent there needs a key ({delivery.error.str()})")
        raise self._conf.meaning(delivery.error, f"publishing to topic {topic!r}")

    def _deliver(self, topic: str, messages: Sequence[Message]) -> _Delivery:
        """Send, and wait until each was acknowledged or given up."""
        client = self._outbox.client
        delivery = _Delivery(len(messages))
        produce, report = client.produce, delivery.report
        self._outbox.expect(len(messages))
        try:
            with self._conf.telling(f"publishing to topic {topic!r}"):
                for message in messages:
                    value, key, headers = message
                    while True:
                        try:
                            produce(topic, value, key, headers=list(headers), on_delivery=partial(report, message))
                            break
                        except BufferError:  # as much as may be is on its way
                            time.sleep(ROOM_S)
            delivery.done.wait()
            if delivery.error is not None:  # after an error that ends the client, others only say that it has ended
                delivery.error = client.error or delivery.error
        finally:
            self._outbox.reported(len(messages))
        return delivery
