"""Brokers that forget are told again which dead letters are resolved."""

from __future__ import annotations

import threading

import pytest

from taskq import Reject, TaskQ
from taskq.broker.memory import MemoryBroker
from taskq.broker.port import Committed, TopicPartition
from taskq.worker import reminding
from taskq.worker.deadoffice import ALL, RESOLVED, list_dead, purge_dead
from taskq.worker.holding import Held
from tests.processes import WAIT_S
from tests.working import wait_finished, working


def test_a_worker_of_a_broker_that_forgets_says_again_what_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[TopicPartition, Committed]] = []
    often = threading.Event()

    def commit(held: Held, tp: TopicPartition, committed: Committed) -> None:
        before(held, tp, committed)
        said.append((tp, committed))
        if said.count(said[0]) == 3:
            often.set()

    before = Held.commit
    with TaskQ("test", broker="memory:") as app:

        @app.task
        def refuse() -> None:
            raise Reject

        refuse.map([()] * 3)
        with working(app) as worker:
            wait_finished(worker)
        purge_dead(app.broker, "default", ALL)
        resolved = app.broker.admin().describe_group(RESOLVED).committed
        monkeypatch.setattr(Held, "commit", commit)
        monkeypatch.setattr(MemoryBroker, "is_remote", True)
        monkeypatch.setattr(reminding, "REMIND_S", 0.01)
        with working(app):
            assert often.wait(WAIT_S)
        assert all(resolved.get(tp, Committed(0)) == committed for tp, committed in said)
        assert resolved.keys() <= {tp for tp, _ in said}
        assert list(list_dead(app.broker, "default")) == []


def test_where_there_is_nothing_to_say_nothing_is_said(app: TaskQ) -> None:
    reminding.remind(app.broker, "default")
    assert app.broker.admin().groups() == []
