"""The ladder and its mover: what is delayed comes when it is due, never before, whatever dies meanwhile."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from taskq import TaskQ, current
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.batch import encode_filler
from taskq.broker.port import Broker, Committed, Message, Polled, Record, TopicPartition
from taskq.errors import BrokerUnavailable, ConfigError, StorageFull
from taskq.ladder import RUNGS_S, TOPICS, delayed, rung_s, topic_for
from taskq.trip import DUE, TO, header
from taskq.worker import delays
from taskq.worker.delays import GROUP, Mover
from taskq.worker.progress import Progress
from tests.processes import wait_until
from tests.working import wait_finished, working

BASE_MS = 1_900_000_000_000


def everything(broker: Broker, topic: str) -> list[Record]:
    if topic not in broker.admin().topics():
        return []
    reader, found = broker.reader(), []
    for number in range(broker.admin().partitions(topic)):
        found += reader.read(TopicPartition(topic, number), 0, 64 << 20)
    reader.close()
    return found


class Ladder:
    """A mover in virtual time: records get its timestamps, and it moves when told."""

    def __init__(self, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = app.broker
        self.now_ms = BASE_MS
        self.patch = monkeypatch
        monkeypatch.setattr(time, "time", lambda: self.now_ms / 1000)
        monkeypatch.setattr(delays, "_IDLE_S", 1e9)
        self.producer = app.broker.producer()
        self.mover = Mover(app.broker)
        self.fired: dict[bytes, int] = {}

    def publish(self, value: bytes, delay_ms: int, target: str = "target", key: bytes | None = None) -> None:
        topic, message = delayed(Message(value, key), target, self.now_ms + delay_ms, self.now_ms)
        self.producer.send_many(topic, [message])

    def move(self) -> None:
        for _ in range(4):  # it is told of changes in the group first, and then of records
            self.mover._take(self.mover._consumer.poll(0, delays.AHEAD_MAX))
        self.mover.step(self.now_ms)
        for record in everything(self.broker, "target"):
            assert record.value is not None
            self.fired.setdefault(record.value, self.now_ms)

    def move_one_uncommitted(self) -> None:
        """It has come; that it was moved could not be stored."""
        self.publish(b"1", 10)
        self.move()
        self.now_ms += 20
        with self.patch.context() as patch:
            patch.setattr(self.mover._consumer, "commit", frozenset)  # nothing was stored of any
            self.move()

    def next_ms(self) -> int:
        return self.now_ms + max(1, round(self.mover._timeout_s() * 1000))

    def run_until(self, done: int, steps_max: int = 2000) -> None:
        for _ in range(steps_max):
            self.move()
            self.move()  # it sees at once what it has moved down itself
            if len(self.fired) >= done:
                return
            self.now_ms = self.next_ms()
        raise AssertionError(f"{len(self.fired)} of {done} came")

    def die(self) -> None:
        """As by SIGKILL, for all the broker can tell: nothing more is committed."""
        self.mover._consumer.close()
        self.mover = Mover(self.broker)


@pytest.fixture
def ladder(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> Ladder:
    return Ladder(app, monkeypatch)


DELAYS_MS = [1, 17, 500, 999, 1000, 1001, 3999, 4000, 15_999, 64_000, 299_999, 3_600_000, 86_400_000, 30 * 86_400_000]


def test_all_come_when_they_are_due_and_never_before(ladder: Ladder) -> None:
    for delay_ms in DELAYS_MS:
        ladder.publish(b"%d" % delay_ms, delay_ms)
    ladder.run_until(len(DELAYS_MS))
    late_ms = {delay_ms: ladder.fired[b"%d" % delay_ms] - BASE_MS - delay_ms for delay_ms in DELAYS_MS}
    assert all(0 <= late <= 2 for late in late_ms.values()), late_ms


def test_a_mover_that_dies_at_any_step_loses_nothing_and_moves_little_twice(ladder: Ladder) -> None:
    for delay_ms in DELAYS_MS:
        ladder.publish(b"%d" % delay_ms, delay_ms)
    for _ in range(600):
        ladder.move()
        if len(ladder.fired) == len(DELAYS_MS):
            break
        ladder.die()
        ladder.move()
        ladder.now_ms = ladder.next_ms()
    assert len(ladder.fired) == len(DELAYS_MS)
    assert all(ladder.fired[b"%d" % delay_ms] - BASE_MS >= delay_ms for delay_ms in DELAYS_MS)
    assert len(everything(ladder.broker, "target")) == len(DELAYS_MS), "between two steps nothing is half done"


def test_what_arrives_carries_what_was_published_and_nothing_of_the_way(ladder: Ladder) -> None:
    message = Message(b"value", b"key", (("mine", b"1"),))
    topic, on_ladder = delayed(message, "target", ladder.now_ms + 5_000, ladder.now_ms)
    assert topic == "__taskq.delay.4"
    ladder.producer.send_many(topic, [on_ladder])
    ladder.run_until(1)
    (record,) = everything(ladder.broker, "target")
    assert (record.value, record.key, record.headers) == (b"value", b"key", (("mine", b"1"),))


def test_little_is_held_of_much_that_waits(ladder: Ladder) -> None:
    now_ms = ladder.now_ms
    for _ in range(20):
        sent = [delayed(Message(b"x"), "target", now_ms + 86_400_000, now_ms)[1] for _ in range(400)]
        ladder.producer.send_many(topic_for(86_400_000), sent)
    for _ in range(10):
        ladder.move()
    held = sum(len(rung.ahead) for rung in ladder.mover._rungs.values())
    assert held <= 2 * (delays.AHEAD_MAX + 400)
    assert sum(sample.value for sample in ladder.mover.samples()) == 8000


def test_what_is_due_at_once_is_bounded_in_memory_and_all_comes(ladder: Ladder) -> None:
    ladder.patch.setattr(delays, "HEAP_MAX", 50)
    for number in range(500):
        ladder.publish(b"%d" % number, 700)
    ladder.move()
    assert len(ladder.mover._heap) == 50
    ladder.run_until(500)
    assert not ladder.mover._heap
    assert min(ladder.fired.values()) >= BASE_MS + 700


def test_a_full_disk_keeps_what_is_due_until_there_is_space(ladder: Ladder) -> None:
    ladder.publish(b"1", 10)
    ladder.publish(b"2", 10)

    def refuse(*_: object) -> None:
        raise StorageFull("full")

    ladder.patch.setattr(ladder.mover._producer, "send_many", refuse)
    ladder.move()
    ladder.now_ms += 20
    ladder.move()
    assert ladder.fired == {}
    assert ladder.mover._timeout_s() == 1.0
    ladder.die()  # nothing was said to have been moved
    ladder.run_until(2)
    assert len(everything(ladder.broker, "target")) == 2


def test_what_could_not_be_committed_is_soon_and_moves_once(ladder: Ladder) -> None:
    ladder.move_one_uncommitted()
    assert set(ladder.fired) == {b"1"}
    assert ladder.mover._timeout_s() == 1.0
    ladder.now_ms += 1000
    ladder.mover.step(ladder.now_ms)
    ladder.die()
    ladder.move()
    ladder.move()
    assert len(everything(ladder.broker, "target")) == 1


def test_what_is_asked_for_is_committed_before_it_is_released(ladder: Ladder) -> None:
    ladder.move_one_uncommitted()
    (moved,) = [rung for rung in ladder.mover._rungs.values() if rung.progress.low == 1]
    consumer = ladder.mover._consumer
    done: list[str] = []
    with ladder.patch.context() as patch:
        patch.setattr(consumer, "commit", lambda states: frozenset(filter(done.append, map(str, states))))
        patch.setattr(consumer, "release", lambda tps: done.append(f"{tps[0]} is released"))
        ladder.mover._take(Polled(revoking=frozenset({moved.tp})))
    assert done == [str(moved.tp), f"{moved.tp} is released"]


def test_what_is_no_delayed_invocation_becomes_a_dead_letter(ladder: Ladder) -> None:
    ladder.producer.send_many("__taskq.delay.0", [Message(b"?"), Message(b"!", None, ((DUE, b"soon"), (TO, b"x")))])
    ladder.publish(b"sound", 1)
    ladder.run_until(1)
    letters = everything(ladder.broker, f"{GROUP}.dead")
    assert {letter.value for letter in letters} == {b"?", b"!"}
    assert all(header(letter.headers, "taskq-dead-reason") == b"unreadable" for letter in letters)


def test_what_its_topic_refuses_becomes_a_dead_letter_and_the_rest_comes(ladder: Ladder) -> None:
    ladder.broker.admin().create_topic("target", 2, cleanup_policy="compact")
    for number in range(4):
        key = b"key %d" % number if number % 2 else None
        topic, message = delayed(Message(b"%d" % number, key), "target", ladder.now_ms + 10, ladder.now_ms)
        ladder.producer.send_many(topic, [message])
    ladder.run_until(2)
    assert set(ladder.fired) == {b"1", b"3"}
    assert len(everything(ladder.broker, "target")) == 2
    letters = everything(ladder.broker, f"{GROUP}.dead")
    assert {letter.value for letter in letters} == {b"0", b"2"}
    for letter in letters:
        assert header(letter.headers, "taskq-dead-reason") == b"refused"
        assert b"a record needs a key there" in (header(letter.headers, "taskq-dead-message") or b"")
        assert header(letter.headers, TO) == b"target"
    ladder.die()
    ladder.move()
    assert len(everything(ladder.broker, f"{GROUP}.dead")) == 2, "they were finished"


def test_what_is_refused_everywhere_stays(ladder: Ladder) -> None:
    ladder.publish(b"1", 10)
    send_many, refused = ladder.mover._producer.send_many, [0]

    def refuse(*_: object) -> None:
        refused[0] += 1
        raise ConfigError("no")

    ladder.patch.setattr(ladder.mover._producer, "send_many", refuse)
    ladder.move()
    ladder.now_ms += 20
    ladder.move()
    assert refused == [2]
    assert ladder.mover._timeout_s() == 1.0
    ladder.patch.setattr(ladder.mover._producer, "send_many", send_many)
    ladder.now_ms += 1000
    ladder.move()
    assert [letter.value for letter in everything(ladder.broker, f"{GROUP}.dead")] == [b"1"]


def test_a_topic_that_takes_nothing_holds_up_no_other(ladder: Ladder) -> None:
    send_many, tried = ladder.mover._producer.send_many, [0]

    def refuse(topic: str, messages: list[Message]) -> object:
        if topic == "away":
            tried[0] += 1
            raise BrokerUnavailable("away")
        return send_many(topic, messages)

    ladder.patch.setattr(ladder.mover._producer, "send_many", refuse)
    for number in range(20):
        ladder.publish(b"%d" % number, 10)
        ladder.publish(b"-%d" % number, 10, "away")
        ladder.move()
        ladder.now_ms += 100
        ladder.move()
    assert len(ladder.fired) == 20
    assert 2 <= tried[0] <= 4, "in two seconds"
    ladder.patch.setattr(ladder.mover._producer, "send_many", send_many)
    ladder.now_ms += 1000
    ladder.move()
    assert len(everything(ladder.broker, "away")) == 20
    ladder.die()
    ladder.move()
    assert len(everything(ladder.broker, "away")) == 20


def test_what_waits_for_a_topic_is_bounded_in_memory(ladder: Ladder) -> None:
    ladder.patch.setattr(delays, "HEAP_MAX", 50)

    def refuse(*_: object) -> None:
        raise StorageFull("full")

    with ladder.patch.context() as patch:
        patch.setattr(ladder.mover._producer, "send_many", refuse)
        for number in range(200):
            ladder.publish(b"%d" % number, 10)
            if number % 60 == 59:
                ladder.now_ms += 20
                ladder.move()
        assert sum(map(len, ladder.mover._owed.values())) == 60
        assert ladder.mover._timeout_s() == 1.0
    ladder.run_until(200)


def test_a_record_from_a_clock_that_is_ahead_holds_up_none_behind_it(ladder: Ladder) -> None:
    ladder.now_ms += 60_000
    ladder.publish(b"ahead", 4_000, key=b"k")
    ladder.now_ms -= 60_000
    due_ms = {}
    for number in range(40):
        value = b"%d" % number
        due_ms[value] = ladder.now_ms + 4_000
        ladder.publish(value, 4_000, key=b"k")
        ladder.move()
        ladder.now_ms += 500
    late_ms = [ladder.fired[value] - due for value, due in due_ms.items() if value in ladder.fired]
    assert len(late_ms) >= 30
    assert all(0 <= late <= 500 for late in late_ms), late_ms


def test_progress_that_only_just_fitted_is_gone_on_with(ladder: Ladder) -> None:
    """Its mover had more in its heap than another one may begin with."""
    ladder.patch.setattr(delays, "ENCODED_BYTES_MAX", 20)
    for number in range(400):
        ladder.publish(b"%d" % number, 900, key=b"k")
    ladder.move()
    progress = Progress(0)
    progress.finish([offset for offset in range(300) if offset % 10])
    (rung,) = [rung for rung in ladder.mover._rungs.values() if rung.ahead or rung.end]
    assert not ladder.mover._consumer.commit({rung.tp: Committed(progress.low, progress.encode())})
    ladder.die()
    ladder.run_until(130)
    assert set(ladder.fired) == {b"%d" % offset for offset in range(400) if offset >= 300 or offset % 10 == 0}


@pytest.mark.parametrize("app", ["embedded"], indirect=True)
def test_offsets_without_a_record_are_passed(ladder: Ladder) -> None:
    ladder.publish(b"1", 10, key=b"k")
    ladder.move()
    (rung,) = [rung for rung in ladder.mover._rungs.values() if rung.end]
    assert isinstance(ladder.broker, EmbeddedBroker)
    ladder.broker._directory.partition(rung.tp).append(encode_filler(3, 200), 3, ladder.now_ms)
    ladder.publish(b"2", 10, key=b"k")
    ladder.now_ms += 20
    ladder.move()
    assert set(ladder.fired) == {b"1", b"2"}
    assert ladder.broker.admin().describe_group(GROUP).committed[rung.tp].offset == 5


def test_rungs_are_chosen_so_that_nothing_waits_too_long() -> None:
    for left_ms in (0, 1, 999, 1000, 3999, 4000, 10**9, 10**12):
        rung = rung_s(topic_for(left_ms))
        assert rung * 1000 <= left_ms
        assert rung == RUNGS_S[-1] or left_ms < max(1, rung) * 4 * 1000
    assert rung_s(topic_for(-5)) == 0
    assert len(TOPICS) == len(set(TOPICS)) == 11


def test_delayed_invocations_run_when_they_are_due(app: TaskQ, backend: str) -> None:
    started: dict[int, float] = {}

    @app.task
    async def work(number: int) -> None:
        started[number] = time.time()

    with working(app, backend) as worker:
        before = time.time()
        due = {
            1: before + 0.3,
            2: before + 0.3,
            3: before + 0.3,
            4: before + 1.2,
            5: before,
        }
        work.options(delay=0.3).delay(1)
        work.options(at=datetime.now(UTC) + timedelta(seconds=0.3)).delay(2)
        work.apply_async((3,), countdown=0.3)
        work.options(delay=timedelta(seconds=1.2)).map([(4,)])
        work.options(at=before - 100).delay(5)
        wait_until(lambda: len(started) == 5, "all have run")
        wait_finished(worker)
    assert all(started[number] >= due[number] for number in due)
    assert all(started[number] < due[number] + 1 for number in due)


def test_a_key_and_headers_survive_the_ladder(app: TaskQ) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    @app.task
    def work() -> None:
        seen.append((current.id, current.headers))

    ident = work.options(delay=0.05, key="k", headers={"trace": "7"}, id="mine").delay().id
    with working(app) as worker:
        wait_until(lambda: seen, "it has run")
        wait_finished(worker)
    assert seen == [("mine", {"trace": "7"})]
    assert ident == "mine"
