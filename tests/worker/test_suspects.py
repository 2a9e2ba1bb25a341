"""What may have killed a worker: who knows of it, for how long, and what becomes of it."""

from __future__ import annotations

import pytest

from taskq import Retry, TaskQ
from taskq.broker.port import Committed, Message, Polled, Record, TopicPartition
from taskq.message import Envelope
from taskq.trip import NEW
from taskq.worker import Worker, WorkerOptions
from taskq.worker.gates import Ticket
from taskq.worker.progress import Progress
from taskq.worker.retries import REDELIVERED, RemoteError, SuspectDied, Verdict, decide, decide_suspect
from taskq.worker.standing import NOBODY, STANDING_BYTES_MAX, Standing
from taskq.worker.work import Work

TP = TopicPartition("feed", 0)
RECORD = Record(5, 0, None, b"", ())


def stored(work: Work, *, is_open: bool = True) -> Standing:
    return Standing.decode(*work.state(is_open=is_open))[0]


def test_who_gives_a_partition_up_with_suspects_leaves_them_to_the_next_as_suspects() -> None:
    work = Work(TP, Progress(3), Standing(10, {3: 2, 5: 2}))
    work.end = 20
    work.set_limit()
    assert stored(work).limit > 20
    assert stored(work, is_open=False) == Standing(10, {3: 2, 5: 2})
    work.marks[4] = 2
    work.progress.finish([3, 4])
    assert stored(work, is_open=False) == Standing(10, {5: 2})
    work.progress.finish(list(range(5, 20)))
    assert stored(work, is_open=False) == NOBODY


def test_a_partition_is_dangerous_while_suspects_are_left_and_some_were_marked() -> None:
    assert not Work(TP, Progress(3), Standing(10)).is_dangerous
    work = Work(TP, Progress(3), Standing(10, {4: 2}))
    assert work.is_dangerous
    work.progress.finish(list(range(3, 10)))
    assert not work.is_dangerous


def test_a_standing_of_as_many_as_may_run_at_once_and_before_is_short_enough() -> None:
    standing = Standing(1 << 40, {1000 + 3 * number: 3 for number in range(64)})
    encoded = standing.encode(1000)
    assert len(encoded) <= STANDING_BYTES_MAX
    assert Standing.decode(1000, encoded + b"rest") == (standing, b"rest")
    with pytest.raises(ValueError, match="cut short"):
        Standing.decode(1000, encoded[:-1])


def test_the_death_of_its_child_is_no_attempt_of_a_suspects_until_it_was_the_last() -> None:
    for delivery in (2, 3, 4):
        failure = decide_suspect(SuspectDied("was killed by SIGKILL"), RECORD, delivery, 5)
        assert (failure.outcome, failure.delay_s, failure.trip) == (REDELIVERED, None, NEW)
    failure = decide_suspect(SuspectDied("was killed by SIGKILL"), RECORD, 5, 5)
    assert (failure.outcome, failure.reason, failure.type) == ("dead", "deliveries", "taskq.errors.ProcessDied")
    assert failure.message.startswith("the process that ran it died each of 5 times")
    assert failure.message.endswith("the last one was killed by SIGKILL")


def test_an_error_in_another_process_is_decided_upon_by_what_was_said_there() -> None:
    """The policy here can't tell: it would ask for the class."""
    policy = Retry(1, base=0, on=(OSError,))
    taken = RemoteError(Verdict("OSError", "no", is_taken=True), "where")
    other = RemoteError(Verdict("OSError", "no"), "where")
    later = RemoteError(Verdict("RetryLater", "again", later_s=3.0), "")
    cancelled = RemoteError(Verdict("", "it was cancelled", "cancelled", "cancelled"), "")
    assert decide(policy, taken, RECORD, 0.5, 0).outcome == "retried"
    failure = decide(policy, other, RECORD, 0.5, 0)
    assert (failure.outcome, failure.reason, failure.type, failure.traceback) == ("dead", "failed", "OSError", "where")
    assert decide(policy, later, RECORD, 0.5, 0).delay_s == 3.0
    assert decide(policy, later, RECORD, 0.5, 0).trip.failures == 0
    assert decide(policy, cancelled, RECORD, 0.5, 0).outcome == "cancelled"


def test_what_comes_back_as_this_worker_left_it_is_no_dead_workers() -> None:
    """Its session was over for a while; nobody else has had the partition."""
    work = Work(TP, Progress(3), Standing(10, {4: 2}))
    work.end = 20
    work.set_limit()
    work.committed = work.state()
    assert work.has_stored(Committed(*work.committed))
    assert not work.has_stored(Committed(work.committed[0] + 1, work.committed[1]))
    assert not Work(TP, Progress(3)).has_stored(Committed(3)), "it has stored nothing"
    again = work.anew()
    assert (again.progress.low, again.suspects_end, again.marks) == (3, 10, {4: 2}), "those it had it still has"
    work.progress.finish(list(range(3, 15)))
    work.committed = work.state()
    again = work.anew()
    assert (again.progress.low, again.suspects_end, again.is_dangerous) == (15, 0, False)


def test_a_worker_that_is_back_does_not_take_itself_for_dead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TaskQ("test", broker="memory:") as app:

        @app.task
        def nothing() -> None: ...

        worker = Worker(app, WorkerOptions("default"))
        poller, place = worker._poller, TopicPartition("default", 0)
        app.broker.producer().send_many("default", [Message(b"")] * 256)  # some in each partition
        poller._take_changes(Polled(assigned={place: Committed(0)}), 0)
        left = Committed(*poller.works[place].committed)
        poller._take_changes(Polled(lost=frozenset({place})), 0)
        poller._take_changes(Polled(assigned={place: left}), 0)
        assert "died holding it" not in caplog.text
        poller._take_changes(Polled(lost=frozenset({place})), 0)
        poller._take_changes(Polled(assigned={place: Committed(left.offset, Standing(7).encode(0))}), 0)
        assert "died holding it" in caplog.text


def test_what_has_ended_by_then_is_stored_with_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker that dies a moment later would leave it with one delivery too many."""
    with TaskQ("test", broker="memory:") as app:

        @app.task
        def nothing() -> None: ...

        poller = Worker(app, WorkerOptions("default"))._poller
        work = poller.works[TP] = Work(TP, Progress(3), Standing(10))
        first, second = (Ticket(work, work, (), lambda _: None, delivery=2) for _ in range(2))
        for offset, ticket in ((3, first), (4, second)):
            envelope = Envelope(nothing.name)
            ticket.item = (poller._intake.jobs[0], envelope, RECORD._replace(offset=offset), ticket)
        commits: list[Committed] = []

        def commit(states: dict[TopicPartition, Committed]) -> frozenset[TopicPartition]:
            commits.append(states[TP])
            return frozenset()

        monkeypatch.setattr(poller._consumer, "commit", commit)
        poller._mark([first])
        work.finish(3)
        poller._mark([second])
        assert [Standing.decode(one.offset, one.metadata)[0].marks for one in commits] == [{3: 2}, {4: 2}]
        assert [one.offset for one in commits] == [3, 4]


def test_what_runs_at_most_once_does_not_where_that_it_is_finished_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The partition is another worker's by now, who runs it."""
    with TaskQ("test", broker="memory:") as app:

        @app.task(at_most_once=True)
        def once() -> None: ...

        poller = Worker(app, WorkerOptions("default"))._poller
        work = poller.works[TP] = Work(TP, Progress(5))
        ticket = Ticket(work, work, (), lambda _: None)
        ticket.item = (poller._intake.jobs[0], Envelope(once.name), RECORD, ticket)
        monkeypatch.setattr(poller._consumer, "commit", lambda states: frozenset(states))
        before = work.committed
        assert not poller._finish_early([ticket])
        assert (work.progress.low, work.committed) == (5, before)
        monkeypatch.setattr(poller._consumer, "commit", lambda states: frozenset())
        assert poller._finish_early([ticket])
        assert work.progress.low == 6


def test_the_crew_for_suspects_is_not_short_of_work_when_there_are_none() -> None:
    with TaskQ("test", broker="memory:") as app:

        @app.task
        def nothing() -> None: ...

        worker = Worker(app, WorkerOptions("default"))
        worker._poller.start(worker._crews, aside=worker._processes)
        assert worker._poller.feed.queues == [worker._threads.queue]
