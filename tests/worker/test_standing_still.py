"""What goes on by itself, though nothing else happens: what was stalled, handed over, or made anew."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker.log.offsets import Lease
from taskq.broker.port import Committed, TopicPartition
from taskq.errors import StorageFull
from taskq.worker.progress import Progress
from taskq.worker.standing import Standing
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working

TP = TopicPartition("t", 0)


def test_a_partition_that_was_stalled_is_gone_on_with_by_who_has_it_next(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its progress was as long as may be stored, with those that ran; the next one has begun nothing yet."""
    monkeypatch.setattr("taskq.worker.work.ENCODED_BYTES_MAX", 20)
    app.broker.admin().create_topic("t", 1)
    ran: list[int] = []

    @app.task(topic="t")
    def task(number: int) -> None:
        ran.append(number)

    task.map([(number,) for number in range(1500)])
    progress = Progress(0)
    progress.finish([offset for offset in range(1000) if offset % 10])
    with closing(app.broker.consumer("default", ["t"])) as before:
        assert TP in before.poll(5).assigned
        before.commit({TP: Committed(0, Standing(1000, {}).encode(0) + progress.encode())})
    with working(app) as worker:
        wait_finished(worker)
    assert sorted(ran) == [number for number in range(1500) if number >= 1000 or number % 10 == 0]


@pytest.mark.parametrize("app", ["embedded"], indirect=True)
def test_a_handover_for_which_there_was_no_space_is_made_when_there_is(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = app.task(name="task")(lambda: None)
    with working(app) as worker:
        task.delay()
        wait_finished(worker)
        commit, is_full = Lease.commit, [True]

        def full(self: Lease, *arguments: Any) -> None:
            if is_full[0]:
                raise StorageFull("full")
            commit(self, *arguments)

        monkeypatch.setattr(Lease, "commit", full)
        with closing(app.broker.consumer("default", list(app.topics("default")))) as other:
            works = worker._poller.works.values()
            wait_until(lambda: other.poll(0.01).assigned or any(work.handover_at for work in works), "it is asked for")
            is_full[0] = False
            assert other.poll(WAIT_S).assigned
