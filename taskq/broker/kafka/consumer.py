"""Members and a fetcher as one consumer, as the port wants it."""

from __future__ import annotations

import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import log
from taskq.broker.kafka.fetcher import Fetcher
from taskq.broker.kafka.lookup import Lookup
from taskq.broker.kafka.member import offsets_of
from taskq.broker.kafka.members import Members
from taskq.broker.kafka.remakes import ID_LENGTH, Remakes, id_of
from taskq.broker.kafka.stats import Stats
from taskq.broker.kafka.topics import purges
from taskq.broker.limits import check_progress
from taskq.broker.port import Committed, Fetched, Polled, TopicPartition
from taskq.config import check_group
from taskq.errors import BrokerError, BrokerUnavailable, OffsetOutOfRange, TopicNotFound

KEEP_S = 5.0
"""How long a partition that its owner would not let go is left alone before asking again."""

PURGE_S: Final = 30.0
"""How often what is finished is removed, of topics of which only one group reads."""


@define(eq=False)
class _Held:
    """A partition that is ours."""

    is_paused: bool = False
    is_revoking: bool = False
    topic_id: str | None = None
    """Of the topic as it was when this became ours, if the brokers give topics ids."""
    is_new: bool = False
    """Whether the group had committed nothing: what is not there any more was never meant for it."""
    keep_until: float | None = None
    """If the group has asked for it, and it was kept: until when (monotonic)."""


@define(eq=False)
class _News:
    """What the owner is to be told with the next poll."""

    assigned: dict[TopicPartition, Committed] = field(factory=dict)
    revoking: set[TopicPartition] = field(factory=set)
    lost: set[TopicPartition] = field(factory=set)
    errors: dict[TopicPartition, BrokerError] = field(factory=dict)
    skipped: dict[TopicPartition, int] = field(factory=dict)


class KafkaConsumer:
    """See `taskq.broker.port.Consumer`."""

    def __init__(self, lookup: Lookup, stats: Stats, group: str, subscribed: Sequence[str], *, is_strict: bool) -> None:
        check_group(group)
        for topic in subscribed:
            lookup.topics.ensure(topic)
        self._lookup = lookup
        self._topics = lookup.topics
        self._conf = lookup.conf
        self._is_strict = is_strict
        self._changed = threading.Condition()
        self._held: dict[TopicPartition, _Held] = {}
        self._news = _News()
        self._is_woken = False
        self._is_closed = False
        self._is_polling = False
        self._polled_at = time.monotonic()
        self._purge_at = 0.0
        self._remakes = Remakes(lookup.client)
        self._fetcher = Fetcher(self._conf, self._changed, self._skip, self._stop_reading)
        try:
            self._members = Members(self._conf, group, subscribed, self, stats)
        except BaseException:
            self._fetcher.close()
            raise

    @property
    def member_id(self) -> str:
        return self._members.id

    def poll(self, timeout: float, records_max: int = 4096) -> Polled:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._is_polling = True
            try:
                while True:
                    self._check_open()
                    now = time.monotonic()
                    polled = self._look(now, records_max)
                    if polled is not None or self._is_woken or now >= deadline:
                        self._is_woken = False
                        return polled or Polled()
                    kept = [held.keep_until for held in self._held.values() if held.keep_until is not None]
                    self._changed.wait(max(0.0, min([deadline, *kept]) - now))
            finally:
                self._is_polling = False
                self._polled_at = time.monotonic()

    def wakeup(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def pause(self, tps: Sequence[TopicPartition]) -> None:
        with self._changed:
            for held in self._known(tps):
                held.is_paused = True

    def resume(self, tps: Sequence[TopicPartition]) -> None:
        with self._changed:
            for held in self._known(tps):
                held.is_paused = False

    def commit(self, progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        for tp, committed in progress.items():
            check_progress(tp, committed)
        with self._changed:
            ours = {
                tp: (committed.offset, as_text(committed.metadata, self._held[tp].topic_id))
                for tp, committed in progress.items()
                if tp in self._held and tp not in self._news.lost
            }
        missed = progress.keys() - ours.keys()
        if ours:
            missed |= self._members.commit(offsets_of(ours))
            self._purge({tp: offset for tp, (offset, _) in ours.items() if tp not in missed})
        return frozenset(missed)

    def release(self, tps: Sequence[TopicPartition]) -> None:
        with self._changed:
            self._known(tps)
            for tp in tps:
                if tp in self._news.lost:  # its owner need not hear of it, and what it may hold by now is another time
                    self._news.lost.discard(tp)
                    continue
                self._held.pop(tp, None)
                self._news.revoking.discard(tp)  # it may have been asked for once more
                self._news.errors.pop(tp, None)
                self._news.skipped.pop(tp, None)
                self._fetcher.remove([tp])
        self._members.look()

    def keep(self, tps: Sequence[TopicPartition]) -> None:
        with self._changed:
            for held in self._known(tps):
                held.is_revoking = False
                held.keep_until = time.monotonic() + KEEP_S

    def leave(self) -> None:
        self._members.leave()

    def close(self) -> None:
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        self._members.close()
        self._fetcher.close()

    # -- with the condition held

    def _known(self, tps: Sequence[TopicPartition]) -> list[_Held]:
        """Those of them that are held; KeyError for one that never was. What is lost its owner may not know yet."""
        return [self._held[tp] for tp in tps if tp not in self._news.lost]

    def _check_open(self) -> None:
        if self._is_closed:
            raise BrokerUnavailable(f"the consumer of {self._conf.shown} has been closed")
        error = self._members.error or self._fetcher.error
        if error is not None:
            raise error

    def _look(self, now: float, records_max: int) -> Polled | None:
        """What there is to report; None if nothing. What is lost comes first: it may be assigned again."""
        news = self._news
        if news.lost:
            self._news = _News(news.assigned, news.revoking, set(), news.errors, news.skipped)
            return Polled(lost=frozenset(news.lost))
        for tp, held in self._held.items():
            if held.keep_until is not None and now >= held.keep_until:
                held.keep_until = None
                held.is_revoking = True
                news.revoking.add(tp)
        if news.assigned or news.revoking:
            self._news = _News(errors=news.errors, skipped=news.skipped)
            return Polled(assigned=news.assigned, revoking=frozenset(news.revoking))
        fetched = self._take(records_max)
        if fetched or news.errors or news.skipped:
            self._news = _News()
            return Polled(fetched, errors=news.errors, skipped=news.skipped)
        return None

    def _take(self, records_max: int) -> list[Fetched]:
        taken: list[Fetched] = []
        for tp, held in list(self._held.items()):
            if records_max > 0 and not held.is_paused and not held.is_revoking and tp not in self._news.skipped:
                records = self._fetcher.take(tp, records_max)
                if records:
                    records_max -= len(records)
                    taken.append(Fetched(tp, records))
        for tp, _ in taken:
            self._held[tp] = self._held.pop(tp)  # to the end: the others go first next time
        return taken

    # -- for the members, in their threads

    def on_assigned(self, committed: Sequence[KafkaPartition], *, is_last: bool) -> None:
        found: dict[TopicPartition, Committed] = {}
        new: dict[str, list[TopicPartition]] = {}
        ids: dict[str, str | None] = {}
        for topic in {one.topic for one in committed}:
            try:
                ids[topic] = id_of(self._topics.find(topic))
                self._remakes.learn(topic, ids[topic])
            except TopicNotFound:  # deleted, or the broker that was asked has not heard of it yet
                if not is_last:
                    raise
                ids[topic] = None
        for one in committed:
            tp = TopicPartition(one.topic, one.partition)
            if one.offset >= 0 and (None in (said := topic_id_of(one), ids[tp.topic]) or said == ids[tp.topic]):
                found[tp] = Committed(one.offset, metadata_of(one))
            else:
                new.setdefault(tp.topic, []).append(tp)
                if one.offset >= 0:
                    log.warning("what is committed of %s is of a topic that was deleted: it is read from its start", tp)
        for tps in new.values():
            try:
                found.update({tp: Committed(start) for tp, start in self._lookup.starts(tps).items()})
            except TopicNotFound as error:  # as above. What has been deleted the group takes away
                if not is_last:
                    raise
                log.warning("%s: read from 0, or from where it begins", error)
                found.update(dict.fromkeys(tps, Committed(0)))
        with self._changed:
            for tp, one_committed in found.items():
                self._begin(tp, one_committed)
                self._held[tp].is_new = tp in new.get(tp.topic, ())
                self._held[tp].topic_id = ids[tp.topic]
            self._changed.notify_all()

    def _begin(self, tp: TopicPartition, committed: Committed, *, is_revoking: bool = False) -> None:
        """It is ours from here on. With the condition held."""
        self._held[tp] = _Held(is_revoking=is_revoking)
        self._news.assigned[tp] = committed
        if is_revoking:
            self._news.revoking.add(tp)
        self._fetcher.restart(tp, committed.offset)

    def on_asked(self, tps: Sequence[TopicPartition]) -> None:
        gone = {topic for topic in {tp.topic for tp in tps} if self._is_gone(topic)}
        self.on_lost([tp for tp in tps if tp.topic in gone])
        with self._changed:
            for tp in tps:
                if tp in self._news.assigned:  # its owner has not heard of it yet
                    self._end(tp)
                    del self._held[tp]
                    self._fetcher.remove([tp])
                elif tp in self._held:
                    self._held[tp].is_revoking = True
                    self._news.revoking.add(tp)
            self._changed.notify_all()

    def holds(self, tps: Sequence[TopicPartition]) -> list[TopicPartition]:
        with self._changed:
            return [tp for tp in tps if tp in self._held]

    def on_lost(self, tps: Sequence[TopicPartition]) -> None:
        with self._changed:
            for tp in tps:
                if tp in self._held:
                    self._end(tp)
                    del self._held[tp]
            self._fetcher.remove(tps)
            self._changed.notify_all()

    def _end(self, tp: TopicPartition) -> None:
        """What is known of it is over, and its owner is to hear that if he has heard of it. With the condition held."""
        if self._news.assigned.pop(tp, None) is None:
            self._news.lost.add(tp)
        self._news.revoking.discard(tp)
        self._news.errors.pop(tp, None)
        self._news.skipped.pop(tp, None)

    def on_ended(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def look_around(self) -> None:
        """Whether topics are others than they were: deleted, and made anew."""
        with self._changed:
            topics = {tp.topic for tp in self._held}
        for topic in self._remakes.look(time.monotonic(), topics):
            log.warning("topic %r has been deleted and made anew: it is read from its start", topic)
            with self._changed:
                ident = self._remakes.id_of(topic)
                for tp in [tp for tp, held in self._held.items() if tp.topic == topic and held.topic_id != ident]:
                    self._begin_anew(tp, 0)
                self._changed.notify_all()

    def is_alive(self) -> bool:
        return self._is_polling or self._is_closed or time.monotonic() - self._polled_at < self._conf.max_poll_s

    def _is_gone(self, topic: str) -> bool:
        try:
            return self._topics.look(topic) is None
        except BrokerError:
            return False

    # -- for the fetcher, in its thread

    def _skip(self, tp: TopicPartition, position: int) -> None:
        """What is due is not there: go past what has been removed, or say that it has."""
        bounds = self._lookup.bounds(tp)
        with self._changed:
            if tp not in self._held or not self._fetcher.is_out_of_range(tp, position):  # not what it was meanwhile
                return
            if self._held[tp].is_new and not position:
                self._begin_anew(tp, bounds.start)
            elif self._is_strict and position < bounds.start:
                text = f"{tp}: offset {position} is due; the log begins at {bounds.start}"
                self._stop_reading(tp, OffsetOutOfRange(text))
            elif position < bounds.start:
                self._news.skipped[tp] = self._news.skipped.get(tp, 0) + bounds.start - position
                self._fetcher.restart(tp, bounds.start)
            else:  # the log is shorter than it was: it is another, or a broker has lost what it had acknowledged
                self._begin_anew(tp, bounds.start)
            self._changed.notify_all()

    def _begin_anew(self, tp: TopicPartition, start: int) -> None:
        """It is another log than it was. With the condition held."""
        before = self._held[tp]
        self._end(tp)
        self._begin(tp, Committed(start), is_revoking=before.is_revoking)
        self._held[tp].keep_until = before.keep_until
        self._held[tp].topic_id = self._remakes.id_of(tp.topic)

    def _stop_reading(self, tp: TopicPartition, error: BrokerError) -> None:
        with self._changed:
            if tp in self._held:
                self._news.errors[tp] = error
                self._fetcher.remove([tp])
                self._changed.notify_all()

    # -- topics that only this group reads

    def _purge(self, finished: Mapping[TopicPartition, int]) -> None:
        now = time.monotonic()
        if now < self._purge_at:
            return
        below = {tp: offset for tp, offset in finished.items() if offset and purges(tp.topic)}
        if below:
            self._purge_at = now + PURGE_S
            self._lookup.purge(below)


def as_text(metadata: bytes, topic_id: str | None) -> str:
    """What to commit beside an offset: metadata as base64, and which topic it is of."""
    text = b64encode(metadata).decode()
    return text if topic_id is None else f"{text}.{topic_id}"


def metadata_of(committed: KafkaPartition) -> bytes:
    """What was committed beside the offset. What other programs may have written there is told as it is."""
    return _parted(committed.metadata or "")[0]


def topic_id_of(committed: KafkaPartition) -> str | None:
    """Of the topic that this was committed of, if it says so."""
    return _parted(committed.metadata or "")[1]


def _parted(text: str) -> tuple[bytes, str | None]:
    """What `as_text` was given."""
    head, _, topic_id = text.partition(".")
    try:
        return b64decode(head, validate=True), topic_id if len(topic_id) == ID_LENGTH else None
    except ValueError:
        return text.encode(), None
