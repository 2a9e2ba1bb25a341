"""A member of a group: it is told by the group what it holds, and commits. A thread with a client of librdkafka.

Its own fetching is always paused (fetcher.py does that), so that it can do what librdkafka's way of telling makes hard:
take its time. When another member should have a partition, librdkafka calls back in the thread that polls, and takes
the return of the call as the release. So that call waits here until the owner says that what runs in the partition has
ended. Meanwhile the member is alive (librdkafka's own thread sends heartbeats), and commits.

It can't wait for ever: when somebody else joins or leaves meanwhile, all wait for this member to come along, and after
`max.poll.interval.ms` the group goes on without it. A little sooner what was not released is given up, which costs
another run of what runs in it, and not the rest.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import define, field
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from taskq.broker.kafka.conf import Conf, log
from taskq.broker.kafka.errors import NEVER, NOT_OURS, OUT, TRANSIENT, UNKNOWN_TOPIC, as_broker_error, code_of
from taskq.broker.kafka.stats import Stats
from taskq.broker.kafka.topics import SPREAD_S
from taskq.broker.port import TopicPartition
from taskq.errors import BrokerError, BrokerUnavailable, NotAuthorized, TopicNotFound

TURN_S: Final = 0.05
"""How often to ask the client for news of the group, which it can't wake anybody for."""

COMMIT_S: Final = 60.0
"""How long a commit is tried while the brokers can't take it."""

AGAIN_S: Final = 0.1

DEPART_S: Final = 1.0
"""How long to leave a group may take, until the client has said so; brokers that can't hear it hear nothing else."""

DEPART_TURN_S: Final = 0.005

GIVE_UP_AT: Final = 0.9
"""Which part of `max.poll.interval.ms` the release of a partition may take."""

_log = logging.getLogger("taskq.kafka")


class Owner(Protocol):
    """Who is told, in the member's thread."""

    def on_assigned(self, committed: Sequence[KafkaPartition], *, is_last: bool) -> None:
        """These are ours, with what is committed there. It is asked again if it raises BrokerUnavailable, or
        TopicNotFound; with `is_last` it leaves out what is not there."""
        ...

    def on_asked(self, tps: Sequence[TopicPartition]) -> None:
        """Another should have these."""
        ...

    def holds(self, tps: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Those of them that have not been released."""
        ...

    def on_lost(self, tps: Sequence[TopicPartition]) -> None: ...

    def on_ended(self) -> None:
        """There is an `error`."""
        ...

    def is_alive(self) -> bool:
        """Whether the owner still takes what comes. If not, the group should go on without us."""
        ...

    def look_around(self) -> None:
        """Called now and then. Must not wait."""
        ...


@define(eq=False)
class Commit:
    """A commit that somebody waits for."""

    offsets: list[KafkaPartition]
    deadline: float
    again_at: float = 0.0
    done: threading.Event = field(factory=threading.Event)
    missed: set[TopicPartition] = field(factory=set)
    """What was not stored, since it is not ours any more."""
    error: BrokerError | None = None


class Member:
    """Public methods are for others; all else happens in the thread. `name` is that of its client, for `stats`."""

    def __init__(self, conf: Conf, group: str, topics: Sequence[str], owner: Owner, stats: Stats, name: str) -> None:
        self.id = ""
        """As the group knows it. Empty until it has joined."""
        self.error: BrokerError | None = None
        """Why it can't be a member any more."""
        self._conf = conf
        self._group = group
        self._owner = owner
        self._news = threading.Condition()
        self._commits: deque[Commit] = deque()
        self._leaves = False
        self._leaves_by: float | None = None
        """If it is about to leave, and will be gone once nothing is held: until when (monotonic) that may take."""
        self._is_out = False
        """Whether the group has said so since it asked for something, which the client does not tell then."""
        self._is_closed = False
        self._has_joined = False
        self._stats = stats
        self._name = name
        told = conf.member(group) | {"stats_cb": stats.of(name)}
        with self._conf.telling(f"joining group {group}"):
            self._client = Consumer(told, logger=log)
            self._client.subscribe(list(topics), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)
        self._thread = threading.Thread(target=self._run, name="taskq-kafka-member", daemon=True)
        self._thread.start()

    # -- for others

    def begin_commit(self, offsets: list[KafkaPartition]) -> Commit:
        commit = Commit(offsets, time.monotonic() + COMMIT_S)
        with self._news:
            self._commits.append(commit)
            self._news.notify()
        return commit

    def finish_commit(self, commit: Commit, until: float) -> set[TopicPartition]:
        """Wait until they are stored, at most until then (monotonic): BrokerUnavailable if they were not by then, and
        will not be. What is not stored since the group has gone on without us is returned."""
        while not commit.done.wait(max(0.0, min(1.0, until - time.monotonic()))):
            if not self._thread.is_alive():
                raise self.error or BrokerUnavailable(f"the consumer of {self._conf.shown} has been closed")
            if time.monotonic() >= until:
                self._take_back(commit)
                raise BrokerUnavailable(f"no answer yet from {self._conf.shown} to a commit of group {self._group}")
        if commit.error is not None:
            raise commit.error
        return commit.missed

    def _take_back(self, commit: Commit) -> None:
        """Have it not stored any more: by then somebody else may have stored more. Of what is on its way already the
        brokers see that it is of a time before."""
        with self._news:
            if commit in self._commits:
                self._commits.remove(commit)

    def leave(self) -> None:
        with self._news:
            self._leaves = True
            self._news.notify()

    def look(self) -> None:
        """Something was released."""
        with self._news:
            self._news.notify()

    def begin_close(self) -> None:
        with self._news:
            self._is_closed = True
            self._news.notify()

    def close(self) -> None:
        self.begin_close()
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._turn()
        except Exception as error:
            if not isinstance(error, BrokerError):
                _log.exception("the member of group %s has ended", self._group)
                error = BrokerError(f"group {self._group} on {self._conf.shown}: {type(error).__name__}: {error}")
            self.error = error
        finally:
            if not self._is_closed and self.error is None:  # librdkafka's client can raise what is no exception at all
                self.error = BrokerError(f"the member of group {self._group} on {self._conf.shown} has ended")
            if self.error is not None:
                self._owner.on_ended()
            self._is_closed = True  # so that closing waits for no release
            self._depart()
            self._client.close()
            self._stats.forget(self._name)
            with self._news:
                left = list(self._commits)
            for commit in left:
                commit.error = self.error or BrokerUnavailable(f"the consumer of {self._conf.shown} has been closed")
                commit.done.set()

    def _depart(self) -> None:
        """Leave the group, and be told no more. Closed while partitions are still on their way back, the client would
        not say that it leaves, and what it held would stand still for `session.timeout.ms`. The newer group protocol
        has no such gap, and keeps the id."""
        if not self._conf.is_classic:
            return
        try:
            self._client.unsubscribe()
            deadline = time.monotonic() + DEPART_S
            while self._client.memberid() and time.monotonic() < deadline:
                self._client.poll(DEPART_TURN_S)
        except KafkaException as error:
            _log.debug("leaving group %s: %s", self._group, error)

    def _turn(self) -> None:
        with self._news:
            if not self._leaves and not self._is_closed:
                self._rest()
            leaves, self._leaves = self._leaves, False
        self._store()
        if leaves:
            self._begin_leaving()
        if self._leaves_by is not None:
            self._go_on_leaving(self._leaves_by)
        self._owner.look_around()
        if not self._owner.is_alive():
            return
        message = self._client.poll(0)
        error = message.error() if message is not None else None
        if error is not None:
            self._hear(error)
        if not self.id:
            self.id = self._client.memberid() or ""

    def _begin_leaving(self) -> None:
        """Say at once that we leave, and have what is held waited for by `_revoke`. In the newer protocol the client
        would send no heartbeat from then on: there we are a member until nothing is held, and take nothing more."""
        if self._conf.is_classic:
            self._client.unsubscribe()
        elif self._leaves_by is None:
            self._leaves_by = self._give_up_at()
            self._owner.on_asked(_ours(self._client.assignment()))

    def _go_on_leaving(self, until: float) -> None:
        held = self._owner.holds(_ours(self._client.assignment()))
        if held and time.monotonic() >= until:
            self._give_up(held)
            held = []
        if not held:
            self._leaves_by = None
            self._client.unsubscribe()

    def _rest(self) -> None:
        """Wait for news, but not when a commit is due. With the condition held."""
        due_at = self._commits[0].again_at if self._commits else math.inf
        wait_s = min(TURN_S, due_at - time.monotonic())
        if wait_s > 0:
            self._news.wait(wait_s)

    def _hear(self, error: KafkaError) -> None:
        """An error that librdkafka tells of. Most it gets over by itself."""
        told = self._conf.meaning(error, f"group {self._group}")
        is_fatal = error.fatal() or error.code() == KafkaError._FATAL or isinstance(told, NotAuthorized)
        if is_fatal or (error.code() in NEVER and not self._has_joined):
            raise as_broker_error(told)
        passes = error.code() in TRANSIENT | UNKNOWN_TOPIC
        _log.log(logging.DEBUG if passes else logging.WARNING, "%s", told)

    def _store(self) -> None:
        """Commit what is to be committed, in order. What the brokers can't take now stays for the next time."""
        while True:
            with self._news:
                if not self._commits or self._commits[0].again_at > time.monotonic():
                    return
                commit = self._commits[0]
            commit.offsets = self._left_of(commit)
            with self._news:
                if not self._commits or self._commits[0] is not commit:
                    continue  # nobody waits for it any more
                if commit.offsets:
                    commit.again_at = time.monotonic() + AGAIN_S
                    return
                self._commits.popleft()
            if commit.missed:
                missed = ", ".join(map(str, sorted(commit.missed)))
                _log.info("group %s has gone on without this member: %s is not committed", self._group, missed)
            commit.done.set()

    def _left_of(self, commit: Commit) -> list[KafkaPartition]:
        """Store it, and return what is to be tried again of it."""
        tps = _ours(commit.offsets)
        held = set(self._owner.holds(tps))
        commit.missed |= set(tps) - held
        commit.offsets = [one for one in commit.offsets if (one.topic, one.partition) in held]
        if not commit.offsets:
            return []
        try:
            answered = self._client.commit(offsets=commit.offsets, asynchronous=False)
            failed = {(one.topic, one.partition): one.error for one in answered if one.error is not None}
        except KafkaException as error:
            failed = {(one.topic, one.partition): error.args[0] for one in commit.offsets}
        left = []
        for one in commit.offsets:
            found = failed.get((one.topic, one.partition))
            code = found.code() if found is not None else KafkaError.NO_ERROR
            if code in NOT_OURS | UNKNOWN_TOPIC:
                commit.missed.add(TopicPartition(one.topic, one.partition))
                self._is_out = self._is_out or code in OUT
            elif code in TRANSIENT and time.monotonic() < commit.deadline and not self._is_closed:
                left.append(one)
            elif found is not None:
                commit.error = as_broker_error(self._conf.meaning(found, f"committing of group {self._group}"))
        return left

    # -- called back by the client, in the thread

    def _assign(self, client: Consumer, partitions: list[KafkaPartition]) -> None:
        self.id = client.memberid() or self.id
        self._has_joined = True
        ours = [KafkaPartition(one.topic, one.partition, OFFSET_END) for one in partitions]
        missing_until = time.monotonic() + SPREAD_S
        while partitions and not self._is_closed and self._leaves_by is None:
            try:
                committed = client.committed(partitions, timeout=self._conf.patience_s)
                self._owner.on_assigned(committed, is_last=time.monotonic() > missing_until)
                break
            except (KafkaException, BrokerUnavailable, TopicNotFound) as error:
                if isinstance(error, KafkaException) and code_of(error) not in TRANSIENT:
                    raise self._conf.meaning(error, f"reading what group {self._group} has committed") from error
                _log.warning("what group %s has committed can't be read yet: %s", self._group, error)
                again_at = time.monotonic() + 1.0
                while time.monotonic() < again_at and not self._is_closed:
                    self._store()
                    with self._news:
                        self._rest()
        client.incremental_assign(ours)
        if ours:
            client.pause(ours)

    def _revoke(self, client: Consumer, partitions: list[KafkaPartition]) -> None:
        tps = _ours(partitions)
        if not self._is_closed:
            self._owner.on_asked(tps)
        deadline = self._give_up_at()
        self._is_out = False
        while (held := self._owner.holds(tps)) and not self._is_closed:
            if time.monotonic() >= deadline or self._is_out or not self._owner.is_alive():
                self._give_up(held)
                break
            with self._news:
                self._rest()
            self._store()
        client.incremental_unassign(partitions)

    def _lose(self, client: Consumer, partitions: list[KafkaPartition]) -> None:
        self._forget(_ours(partitions))
        client.incremental_unassign(partitions)

    def _give_up_at(self) -> float:
        """Until when (monotonic) to wait for the release of what is asked for now."""
        return time.monotonic() + GIVE_UP_AT * self._conf.max_poll_s

    def _give_up(self, tps: Sequence[TopicPartition]) -> None:
        _log.warning(
            "group %s has gone on, or has waited long enough for what runs in %s: it is given up",
            *(self._group, ", ".join(map(str, tps))),
        )
        self._forget(tps)

    def _forget(self, tps: Sequence[TopicPartition]) -> None:
        """They are not ours any more. What was to be committed of them is not, should they come back meanwhile: others
        may have had them, and committed more."""
        self._owner.on_lost(tps)
        with self._news:
            for commit in self._commits:
                commit.missed |= set(tps) & set(_ours(commit.offsets))
                commit.offsets = [one for one in commit.offsets if (one.topic, one.partition) not in tps]


def offsets_of(committed: Mapping[TopicPartition, tuple[int, str]]) -> list[KafkaPartition]:
    """What to commit: offset and metadata of each."""
    return [KafkaPartition(*tp, offset, metadata) for tp, (offset, metadata) in committed.items()]


def _ours(partitions: Sequence[KafkaPartition]) -> list[TopicPartition]:
    return [TopicPartition(one.topic, one.partition) for one in partitions]
