"""Dead letters listed, retried and purged, over every broker there is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ, current
from taskq.broker import connect
from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Broker, Committed, PartitionBounds, TopicPartition
from taskq.config import load_settings
from taskq.errors import StorageFull, TaskqError, TopicNotFound
from taskq.worker import deadoffice
from taskq.worker.deadoffice import ALL, RESOLVED, Filter, count_dead, list_dead, purge_dead, retry_dead
from taskq.worker.gauges import dead_letters
from taskq.worker.progress import Progress
from taskq.worker.retries import Failure
from tests.broker.log.segments import batches, flip
from tests.processes import WAIT_S, wait_until
from tests.worker.letters import bury, letter, sent_to_retry, value_of
from tests.working import wait_finished, working

DEAD_0 = TopicPartition("feed.dead", 0)


@pytest.fixture(params=["memory:", "log"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    url = request.param if request.param == "memory:" else str(tmp_path / request.param)
    broker = connect(load_settings(broker=url, partitions=3, cwd=tmp_path, environ={}))
    yield broker
    broker.close()


def ids(broker: Broker, chosen: Filter = ALL) -> list[str | None]:
    return [found.id for found in list_dead(broker, "feed", chosen)]


def count(broker: Broker) -> int:
    return dead_letters(broker.admin(), "feed")


def retried_ids(broker: Broker) -> list[str]:
    return sorted(str(value_id(record.value)) for record in sent_to_retry(broker))


def value_id(value: bytes | None) -> object:
    return next(name for name in "abcdefgh" if value == value_of(name))


def test_a_group_without_dead_letters_has_none(broker: Broker):
    assert ids(broker) == []
    assert count(broker) == retry_dead(broker, "feed", ALL) == purge_dead(broker, "feed", ALL) == 0
    with pytest.raises(TaskqError, match=r"feed has no dead letter a: nothing was changed"):
        retry_dead(broker, "feed", ["a"])
    assert broker.admin().topics() == []


def test_letters_are_listed_the_oldest_first_whatever_partition_they_are_in(broker: Broker):
    for number, name in enumerate("bdca"):
        bury(broker, [letter(name, time_ms=2000 + number, key=name.encode())])
    assert ids(broker) == ["b", "d", "c", "a"]


def test_filters(broker: Broker):
    rejected = Failure("rejected", "Reject", "why")
    bury(broker, [letter("a", time_ms=1000), letter("b", time_ms=2000, task="shop.mail")])
    bury(broker, [letter("c", time_ms=3000, failure=rejected)])
    assert ids(broker, Filter(task="shop.pack")) == ["a", "c"]
    assert ids(broker, Filter(reason="rejected")) == ["c"]
    assert ids(broker, Filter(since_ms=2000)) == ["b", "c"]
    assert ids(broker, Filter(task="shop.pack", since_ms=2000)) == ["c"]
    assert ids(broker, Filter(task="shop.pak")) == []


def test_time_is_that_of_giving_up_and_not_of_being_moved(broker: Broker):
    bury(broker, [letter("a", time_ms=1000), letter("b", time_ms=1 << 43)])
    assert ids(broker, Filter(since_ms=2000)) == ["b"]
    assert ids(broker, Filter(since_ms=1 << 44)) == []


def test_since_the_time_that_is_shown_means_that_letter_too(broker: Broker):
    bury(broker, [letter("a", time_ms=int(time.time() * 1000) + 1000)])  # rounded up, by a clock that is ahead
    (found,) = list_dead(broker, "feed")
    assert found.record.timestamp_ms < found.time_ms
    assert ids(broker, Filter(since_ms=found.time_ms)) == ["a"]
    assert ids(broker, Filter(since_ms=found.time_ms + 1)) == []


@pytest.mark.parametrize("act", [retry_dead, purge_dead])
def test_what_is_resolved_is_listed_and_counted_no_more(broker: Broker, act: Callable[..., int]):
    bury(broker, [letter(name) for name in "abcd"])
    assert count(broker) == 4
    assert act(broker, "feed", ["c", "a"]) == 2
    assert sorted(map(str, ids(broker))) == ["b", "d"]
    assert count(broker) == 2
    with pytest.raises(TaskqError, match=r"no dead letter a: "):
        act(broker, "feed", ["a", "b"])
    assert count(broker) == 2
    assert act(broker, "feed", ALL) == 2
    assert ids(broker) == []
    assert count(broker) == 0
    bury(broker, [letter("e")])
    assert ids(broker) == ["e"]
    assert count(broker) == 1
    assert retried_ids(broker) == (["a", "b", "c", "d"] if act is retry_dead else [])


def test_a_filter_leaves_the_others(broker: Broker):
    bury(broker, [letter(name, task="shop.mail" if name in "bd" else "shop.pack") for name in "abcd"])
    assert retry_dead(broker, "feed", Filter(task="shop.pack")) == 2
    assert sorted(map(str, ids(broker))) == ["b", "d"]
    assert purge_dead(broker, "feed", Filter(reason="failed")) == 2
    assert count(broker) == 0
    assert retried_ids(broker) == ["a", "c"]


def test_of_one_id_all_letters_are_meant_and_of_a_place_one(broker: Broker):
    bury(broker, [letter("a"), letter("a"), letter("b")])
    places = {found.place for found in list_dead(broker, "feed") if found.id == "a"}
    assert len(places) == 2
    assert purge_dead(broker, "feed", [places.pop()]) == 1
    assert sorted(map(str, ids(broker))) == ["a", "b"]
    bury(broker, [letter("a")])
    assert purge_dead(broker, "feed", ["a"]) == 2
    assert ids(broker) == ["b"]


def test_what_comes_meanwhile_stays(broker: Broker):
    bury(broker, [letter(name) for name in "abc"])
    bury(broker, [letter(name, key=b"k") for name in "de"])

    def told(looked_at: int, resolved: int) -> None:
        if looked_at:
            bury(broker, [letter("f", key=b"k")])

    assert retry_dead(broker, "feed", ALL, told) == 5
    assert set(ids(broker)) == {"f"}


def test_each_is_retried_once_by_any_number_of_people_at_once(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadoffice, "WAIT_S", WAIT_S)
    bury(broker, [letter(name) for name in "abcdefgh"])
    counts: list[int] = []
    people = [threading.Thread(target=lambda: counts.append(retry_dead(broker, "feed", ALL))) for _ in range(4)]
    for one in people:
        one.start()
    for one in people:
        one.join(WAIT_S)
    assert sorted(counts) == [0, 0, 0, 8]
    assert retried_ids(broker) == list("abcdefgh")


def test_who_is_at_it_is_named_to_who_can_not_wait(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadoffice, "WAIT_S", 0.1)
    bury(broker, [letter("a")])
    other = broker.consumer(RESOLVED, ["feed.dead"])
    wait_until(lambda: other.poll(0.1).assigned, "it holds all")
    with pytest.raises(TaskqError, match=rf"^feed\.dead is being worked on by {other.member_id} .* try again"):
        purge_dead(broker, "feed", ALL)
    other.close()
    assert purge_dead(broker, "feed", ALL) == 1


def test_other_groups_are_not_waited_for(broker: Broker):
    bury(broker, [letter("a")])
    broker.producer().send_many("other.dead", [letter("b")])
    other = broker.consumer(RESOLVED, ["other.dead"])
    wait_until(lambda: other.poll(0.1).assigned, "it holds all")
    assert purge_dead(broker, "feed", ALL) == 1
    assert dead_letters(broker.admin(), "other") == 1
    other.close()


def test_who_is_interrupted_has_done_all_but_one_batch(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadoffice, "BATCH_MAX", 2)
    bury(broker, [letter(name, key=b"same") for name in "abcdefg"])
    done = [0]

    def told(looked_at: int, resolved: int) -> None:
        done[0] += resolved
        if done[0] == 4:
            raise StorageFull("full")

    with pytest.raises(StorageFull):
        retry_dead(broker, "feed", ALL, told)
    assert retried_ids(broker) == ["a", "b", "c", "d"]
    assert ids(broker) == ["e", "f", "g"]
    assert retry_dead(broker, "feed", ALL) == 3
    assert retried_ids(broker) == list("abcdefg")


def test_what_is_not_sent_is_not_finished(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    bury(broker, [letter("a")])

    def send_many(*_: object) -> None:
        raise StorageFull("full")

    monkeypatch.setattr(type(broker.producer()), "send_many", send_many)
    with pytest.raises(StorageFull):
        retry_dead(broker, "feed", ALL)
    assert ids(broker) == ["a"]
    assert purge_dead(broker, "feed", ALL) == 1


def test_a_topic_that_is_deleted_meanwhile(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("taskq.broker.consumer.TICK_S", 0.0)
    monkeypatch.setattr(deadoffice, "BATCH_MAX", 1)
    bury(broker, [letter(name, key=b"same") for name in "abc"])

    def told(looked_at: int, resolved: int) -> None:
        if resolved:
            broker.admin().delete_topic("feed.dead")

    with pytest.raises(TopicNotFound, match=r"feed\.dead.*taken away while it was worked on: it has been deleted"):
        purge_dead(broker, "feed", Filter(reason="failed"), told)
    assert ids(broker) == []


def test_partitions_that_are_added_meanwhile_do_no_harm(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("taskq.broker.consumer.TICK_S", 0.0)
    bury(broker, [letter("a"), letter("b")])

    def told(looked_at: int, resolved: int) -> None:
        if broker.admin().partitions("feed.dead") < 8:
            broker.admin().alter_topic("feed.dead", 8)

    assert purge_dead(broker, "feed", ["a", "b"], told) == 2
    bury(broker, [letter(name) for name in "cdefgh"])
    assert purge_dead(broker, "feed", ALL) == 6


def test_what_taskqs_own_groups_gave_up_on_can_be_purged_only(broker: Broker):
    broker.producer().send_many("__taskq.delays.dead", [letter("a")])
    with pytest.raises(TaskqError, match="purged, not retried"):
        retry_dead(broker, "__taskq.delays", ALL)
    assert purge_dead(broker, "__taskq.delays", ALL) == 1


def test_progress_that_can_not_be_read_resolves_again_what_is_above_it(
    broker: Broker, caplog: pytest.LogCaptureFixture
):
    bury(broker, [letter(name, key=b"same") for name in "abc"])
    (tp,) = {found.tp for found in list_dead(broker, "feed")}
    consumer = broker.consumer(RESOLVED, ["feed.dead"])
    wait_until(lambda: consumer.poll(0.1).assigned, "it holds all")
    consumer.commit({tp: Committed(1, b"\xffgarbage")})
    consumer.close()
    assert ids(broker) == ["b", "c"]
    assert count(broker) == 2
    assert "can't be read" in caplog.text
    assert retry_dead(broker, "feed", ALL) == 2
    assert ids(broker) == []


@pytest.mark.parametrize("finished", [[], [0, 1, 2], [1, 3, 4], [9], [0, 9], list(range(0, 10, 2))])
@pytest.mark.parametrize("start", [0, 2, 10])
def test_counting_is_the_same_as_looking(finished: list[int], start: int):
    progress = Progress(0)
    progress.finish(finished)
    left = [offset for offset in range(start, 10) if offset not in finished]
    assert count_dead(PartitionBounds(start, 10), Committed(progress.low, progress.encode())) == len(left)


def test_damage_is_passed_over_with_a_warning_until_all_is_purged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    broker = connect(load_settings(broker=tmp_path / "log", partitions=1, environ={}))
    for name in "abc":
        bury(broker, [letter(name)])
    found = batches(tmp_path / "log" / "topics" / "feed.dead" / "0")[1]
    flip(found.path, found.position + 64)
    assert ids(broker) == ["a", "c"]
    assert "offsets 1 to 1 are lost" in caplog.text
    assert retry_dead(broker, "feed", ALL) == 2
    assert retried_ids(broker) == ["a", "c"]
    assert count(broker) == 1
    assert purge_dead(broker, "feed", ALL) == 1
    assert count(broker) == 0
    broker.close()


def test_what_is_resolved_may_be_removed_and_nothing_else(tmp_path: Path):
    broker = EmbeddedBroker(str(tmp_path / "log"), partitions_default=1)
    broker.admin().create_topic("feed.dead", 1, segment_bytes=1024, retention_ms=1000)
    for number in range(12):
        bury(broker, [letter(f"{number}")])
    cleaner = Cleaner(broker._directory, now=lambda: time.time() + 86_400)
    assert cleaner.clean()
    assert broker.reader().bounds(DEAD_0).start == 0
    assert purge_dead(broker, "feed", ["1", "3", *map(str, range(4, 9)), "0", "2"]) == 9
    assert cleaner.clean()
    assert 0 < broker.reader().bounds(DEAD_0).start <= 9
    assert ids(broker) == ["9", "10", "11"]
    assert count(broker) == 3
    assert retry_dead(broker, "feed", ["10"]) == 1
    assert ids(broker) == ["9", "11"]
    broker.close()


# -- with a worker


def test_what_failed_runs_again_under_its_id_when_it_is_retried(app: TaskQ, backend: str):
    is_mended, ran = threading.Event(), list[tuple[object, ...]]()

    @app.task
    def work(number: int) -> None:
        ran.append((number, current.id, current.attempt, current.retried))
        if not is_mended.is_set():
            raise ValueError(f"not {number}")

    handle = work.delay(7)
    app.producer.send("default", b'{"task": "%s", "args": [8]}' % work.name.encode())
    with working(app, backend) as worker:
        wait_until(lambda: dead_letters(app.broker.admin(), "default") == 2, "both are dead letters")
        is_mended.set()
        assert retry_dead(app.broker, "default", ALL) == 2
        wait_until(lambda: len(ran) == 4, "they run again")
        wait_finished(worker)
        assert worker.metrics_snapshot()["taskq_dead_letters"] == [(("default",), [0.0])]
    assert {(7, handle.id, 1, 0), (7, handle.id, 1, 1)} <= set(ran)
    assert len({ident for _, ident, _, _ in ran}) == 2


def test_of_an_event_only_the_handler_that_failed_runs_again(app: TaskQ):
    is_mended, ran = threading.Event(), list[str]()
    happened = app.event("happened")

    @happened.subscribe
    def well(number: int) -> None:
        ran.append("well")

    @happened.subscribe
    def ill(number: int) -> None:
        if not is_mended.is_set():
            raise ValueError(f"not {number}")
        ran.append("ill")

    happened.publish(number=7)
    with working(app) as worker:
        wait_until(lambda: dead_letters(app.broker.admin(), "default") == 1, "it is a dead letter")
        is_mended.set()
        (found,) = list_dead(app.broker, "default")
        assert found.task == ill.name
        assert retry_dead(app.broker, "default", [found.name]) == 1
        wait_until(lambda: len(ran) == 2, "it runs again")
        wait_finished(worker)
    assert Counter(ran) == {"well": 1, "ill": 1}


def test_what_fails_again_is_a_dead_letter_again_with_its_whole_history(app: TaskQ):
    ran = [0]

    @app.task
    def work() -> None:
        ran[0] += 1
        raise ValueError(f"time {ran[0]}")

    work.delay()

    def given_up(times: int) -> list[Any]:
        return [found for found in list_dead(app.broker, "default") if found.trip.retried == times]

    with working(app):
        for times in range(3):
            wait_until(lambda times=times: given_up(times), "it is a dead letter")  # type: ignore[misc]
            (found,) = given_up(times)
            assert [past.message for past in found.trip.errors] == [f"time {n + 1}" for n in range(times + 1)]
            assert found.trip.attempts == 1
            assert found.origin[0] == "default"
            assert retry_dead(app.broker, "default", [found.name]) == 1
