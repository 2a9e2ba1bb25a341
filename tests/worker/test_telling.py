"""At level DEBUG a worker logs every invocation; with the same fields, whatever became of it."""

from __future__ import annotations

import logging

import pytest

from taskq import Retry, TaskQ, current
from taskq.trip import EXPIRES, TRIP, with_header
from tests.working import wait_finished, working


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    records = [vars(record) for record in caplog.records if hasattr(record, "taskq_outcome")]
    names = ("levelname", "taskq_task", "taskq_id", "taskq_attempt", "taskq_outcome")
    return sorted(tuple(record[name] for name in names) for record in records)


def test_each_invocation_is_a_line(app: TaskQ, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="thread")
    def in_thread(a: int, *, b: int = 0) -> None: ...

    @app.task(name="loop", retry=Retry(1, base=0))
    async def on_loop() -> None:
        if current.attempt == 1:
            raise OSError("no")

    @app.task(name="timed", timeout=60)
    def timed() -> None:
        current.logger.info("here")

    @app.task(name="fails")
    def fails() -> None:
        raise ValueError

    caplog.set_level(logging.INFO, "timed")
    caplog.set_level(logging.DEBUG, "taskq.worker")  # last: it sets the handler's level too
    thread, loop, late, lost = in_thread.delay(1, b=2), on_loop.delay(), timed.delay(), fails.delay()
    careful = in_thread.options(expires=3600).delay(1)
    with working(app, backend) as worker:
        wait_finished(worker)
    assert told(caplog) == sorted(
        [
            ("DEBUG", "thread", thread.id, 1, "done"),
            ("DEBUG", "thread", careful.id, 1, "done"),
            ("DEBUG", "loop", loop.id, 2, "done"),
            ("DEBUG", "timed", late.id, 1, "done"),
            ("WARNING", "loop", loop.id, 1, "retried"),
            ("ERROR", "fails", lost.id, 1, "dead"),
        ]
    )
    [done] = [record for record in caplog.records if getattr(record, "taskq_id", "") == thread.id]
    assert 0 <= vars(done)["taskq_seconds"] < 30
    assert 0 <= vars(done)["taskq_waited_seconds"] < 30
    assert f"thread[{thread.id}]" in done.getMessage()
    [own] = [record for record in caplog.records if record.name == "timed"]
    assert (vars(own)["taskq_task"], vars(own)["taskq_id"]) == ("timed", late.id)


def test_what_the_log_says_forges_no_line(app: TaskQ, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="fails")
    def fails() -> None:
        raise OSError("one\rtwo\x1b[31m\u2028three\n2026 CRITICAL forged by an error")

    @app.task(name="works")
    def works() -> None: ...

    caplog.set_level(logging.DEBUG, "taskq.worker")
    send = app.producer.send
    send("default", b'{"task": "x\\n2026 CRITICAL forged by a name", "id": "\\u001b[31m"}')
    send("default", b'{"task": "fails", "id": "i\\n2026 CRITICAL forged by an id"}')
    send("default", b'{"task": "works", "id": "i\\n2026 CRITICAL forged by an id"}')
    with working(app) as worker:
        wait_finished(worker)
    lines = [record.getMessage() for record in caplog.records if hasattr(record, "taskq_outcome")]
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert any("OSError: one\\rtwo\\x1b[31m\\u2028three" in line for line in lines)


def test_what_did_not_run_tells_which_run_it_would_have_been(app: TaskQ, caplog: pytest.LogCaptureFixture) -> None:
    @app.task(name="works")
    def works() -> None: ...

    caplog.set_level(logging.INFO, "taskq.worker")
    tried = with_header((), TRIP, b'{"attempts": 2}')
    app.producer.send("default", b'{"task": "works"}', None, with_header(tried, EXPIRES, b"1"))
    app.producer.send("default", b'{"task": "works", "args": [1]}', None, tried)
    app.producer.send("default", b'{"task": "nobody"}')
    app.producer.send("default", b"?")
    app.producer.send("default", b'{"task": "works"}', None, with_header((), TRIP, b"?"))
    with working(app) as worker:
        wait_finished(worker)
    assert sorted((outcome, attempt) for _, _, _, attempt, outcome in told(caplog)) == [
        *[("dead", 1)] * 3,
        ("dead", 3),
        ("expired", 3),
    ]


def test_otherwise_jobs_run_as_they_are(app: TaskQ, caplog: pytest.LogCaptureFixture) -> None:
    @app.task
    def nothing() -> None: ...

    caplog.set_level(logging.INFO, "taskq.worker")
    nothing.delay()
    with working(app) as worker:
        assert [job.run for job in worker._jobs] == [None]
        wait_finished(worker)
    assert told(caplog) == []
