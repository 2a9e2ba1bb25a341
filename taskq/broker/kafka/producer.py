"""Publishing: a call returns when the brokers have acknowledged, whatever the number of threads that publish.

All producers of an opened broker share one client of librdkafka (`Outbox`), so that what many threads publish travels
together. One thread takes the delivery reports off it as they come; whoever published waits for his own. The client is
idempotent: what is sent again after an error is not there twice, and order is kept within a partition.

What is being sent is bounded by `queue.buffering.max.*`: who would exceed it waits until there is room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from attrs import define, field
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import UNKNOWN_TOPIC, code_of
from taskq.broker.kafka.forks import leave, watch
from taskq.broker.kafka.stats import Stats
from taskq.broker.kafka.topics import SPREAD_S, Topics
from taskq.broker.limits import check_size
from taskq.broker.port import Headers, Message, WouldBlock
from taskq.errors import BrokerUnavailable, ConfigError

REPORTS_S: Final = 0.2
"""How long to wait for delivery reports at a time; one that comes ends it."""

IDLE_S: Final = 5.0
"""How long after the last report the thread goes on, to see errors and to serve statistics."""

ROOM_S: Final = 0.02
"""How long to wait for room at a time."""

PURGE_S: Final = 5.0
"""How long it may take until all who wait have been told that they wait in vain."""

PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
"""What is reported of a record that was given up since nobody can wait for it any more."""

HOMELESS: Final = UNKNOWN_TOPIC | {KafkaError._DESTROY}
"""What is reported of a record whose topic or partition is not there; the last, if it was waiting there to be sent
again."""


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

    def expect(self, count: int) -> Client:
        """The client, for somebody who waits for so many reports until he says `reported`."""
        with self._wanted:
            client = self.client
            self._unreported += count
            self._wanted.notify()
            return client

    def reported(self, count: int) -> None:
        with self._wanted:
            self._unreported -= count
            if self._is_closed:  # somebody may wait for that
                self._wanted.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def _take_reports(self, client: Client) -> None:
        while not self._is_closed:
            try:
                client.poll(REPORTS_S)
            except KafkaException as error:  # it can do no more
                self._give_up(client, error)
                return
            except Exception:  # of what it calls; who waits for a report must get it all the same
                log.exception("what %s has told could not be taken", self._conf.shown)
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
            self._purge(client)

    def _purge(self, client: Client) -> None:
        """Have what the client still has reported as purged."""
        try:
            client.purge(blocking=False)
            client.poll(ROOM_S)
        except KafkaException as error:
            log.debug("%s", error)

    def close(self) -> None:
        """What is being sent may still arrive: whoever sent it waits for that, though not for ever."""
        with self._wanted:
            if self._is_closed:
                return
            self._is_closed = True
            self._wanted.notify_all()
            client, thread = self._client, self._thread
        if client is not None and thread is not None:
            self._finish(client)
            thread.join(self._conf.patience_s)
        with self._wanted:
            self._client = None  # its threads and files go with it, and not when garbage is collected

    def _finish(self, client: Client) -> None:
        """Wait until nobody waits. Who has asked for the client may only be about to send with it."""
        deadline = time.monotonic() + self._conf.patience_s
        while self._is_awaited(client) and time.monotonic() < deadline:
            self._flush(client)
            with self._wanted:
                if self._unreported and not len(client):
                    self._wanted.wait(ROOM_S)
        while self._is_awaited(client) and time.monotonic() < deadline + PURGE_S:
            self._purge(client)

    def _flush(self, client: Client) -> None:
        try:
            client.flush(REPORTS_S)
        except KafkaException as error:
            log.debug("%s", error)

    def _is_awaited(self, client: Client) -> bool:
        return self._unreported > 0 or len(client) > 0


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
    lock: threading.Lock = field(factory=threading.Lock)

    def report(self, sent: Message, error: KafkaError | None, message: KafkaMessage | None) -> None:
        """Called once for each record, in whatever thread takes reports, or sends. The client's `message` has no
        headers; there is none where the client has not taken the record."""
        with self.lock:
            if error is None and message is not None:
                self.place = message.partition(), message.offset()  # type: ignore[assignment]
            elif error is not None and error.code() in HOMELESS:
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
        deadline = time.monotonic() + self._conf.patience_s + SPREAD_S
        while delivery.homeless and delivery.error is None and time.monotonic() < deadline:
            self._topics.forget(topic)  # now it is as on first use
            self._topics.ensure(topic)
            self._look(topic)
            time.sleep(ROOM_S)  # the broker that was asked may not have heard of it yet
            delivery = self._deliver(topic, delivery.homeless)
        if delivery.error is None:
            if delivery.homeless:
                raise self._topics.missing(topic)
            return delivery.place
        self._topics.forget(topic)
        if delivery.error.code() == KafkaError.INVALID_RECORD:
            raise ConfigError(f"topic {topic!r} is compacted: what is sent there needs a key ({delivery.error.str()})")
        raise self._conf.meaning(delivery.error, f"publishing to topic {topic!r}")

    def _look(self, topic: str) -> None:
        """Have the client that publishes hear of a topic that was made anew: by itself it asks seldom."""
        try:
            self._outbox.client.list_topics(topic, self._conf.patience_s)
        except KafkaException as error:  # what is sent next tells
            log.debug("looking for topic %r: %s", topic, error)

    def _deliver(self, topic: str, messages: Sequence[Message]) -> _Delivery:
        """Send, and wait until each was acknowledged or given up."""
        delivery = _Delivery(len(messages))
        client = self._outbox.expect(len(messages))
        try:
            for message in messages:
                self._produce(client, topic, message, partial(delivery.report, message))
            delivery.done.wait()
        finally:
            self._outbox.reported(len(messages))
        if delivery.error is not None:  # after an error that ends the client, others only say that it has ended
            delivery.error = client.error or delivery.error
            if delivery.error.code() in PURGED:
                raise self._closed(topic)
        return delivery

    def _produce(self, client: Client, topic: str, message: Message, report: Callable[..., None]) -> None:
        """Send one, as soon as there is room."""
        value, key, headers = message
        while True:
            try:
                return client.produce(topic, value, key, headers=list(headers), on_delivery=report)
            except BufferError:  # as much as may be is on its way
                if self._outbox.is_closed:
                    raise self._closed(topic) from None
                time.sleep(ROOM_S)
            except KafkaException as error:
                if code_of(error) not in UNKNOWN_TOPIC:
                    raise self._conf.meaning(error, f"publishing to topic {topic!r}") from error
                return report(error.args[0], None)  # the client knows already that the topic is gone

    def _closed(self, topic: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self._conf.shown} was closed before it had acknowledged what was being published to topic {topic!r}: "
            "it may be there or not; close it when all that publishes has ended"
        )
