"""What a worker does on Kafka only, or what only there is to be seen. All else: tests/conformance/test_work.py."""

from __future__ import annotations

from functools import partial

import pytest

from taskq import Reject, TaskQ
from taskq.broker.kafka import consumer
from taskq.broker.port import TopicPartition
from taskq.cli import run
from taskq.ladder import TOPICS
from tests.kafka.cluster import Cluster
from tests.kafka.urls import url
from tests.processes import wait_until
from tests.worker.test_retries import dead_letters
from tests.working import wait_finished, working


def has(ran: list[int], count: int) -> bool:
    return len(ran) == count


def test_what_has_moved_off_the_ladder_is_removed(app: TaskQ, empty: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention would remove what still waits, so there is none: the movers delete what they have moved."""
    monkeypatch.setattr(consumer, "PURGE_S", 0.1)
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    with working(app):
        for so_far in range(20, 80, 20):
            note.options(delay=1.2).map([(number,) for number in range(20)])
            wait_until(partial(has, ran, so_far), "they have run")
        reader = app.broker.reader()
        rungs = [TopicPartition(topic, number) for topic in TOPICS[:2] for number in range(2)]
        wait_until(lambda: sum(reader.bounds(tp).start for tp in rungs) > 0, "what was moved is removed")
    for topic in TOPICS:
        assert app.broker.admin().describe_topic(topic).settings.retention_ms == -1
    assert "retention.ms=-1" in empty.tool("kafka-topics", "--describe", "--topic", TOPICS[1])


def test_dead_letters_are_listed_and_tried_again(
    app: TaskQ, empty: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    is_broken = True

    @app.task
    def note(text: str) -> None:
        if is_broken:
            raise Reject(f"no {text}")
        ran.append(text)

    with working(app) as worker:
        ids = sorted(note.delay(text).id for text in ("a", "b"))
        wait_until(lambda: len(dead_letters(app)) == 2, "both are given up")
        wait_finished(worker)
        common = ["-g", "default", "--broker", url(empty)]
        assert run(["dead", "list", *common]) == 0
        listed = capsys.readouterr().out
        assert all(one in listed for one in (*ids, "no a", "no b"))
        is_broken = False
        assert run(["dead", "retry", "--all", *common]) == 0
        wait_until(lambda: sorted(ran) == ["a", "b"], "they run")
        wait_finished(worker)
    assert run(["dead", "list", *common]) == 0
    assert not any(one in capsys.readouterr().out for one in ids)
