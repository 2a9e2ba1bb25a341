"""What exceptions and publishers say that can't be written, or is too long, costs nobody but themselves."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Literal

import pytest

from taskq import Retry, TaskQ
from taskq.trip import NEW
from taskq.worker.deadletters import DeadLetter
from taskq.worker.deadoffice import ALL, list_dead, retry_dead
from taskq.worker.gauges import dead_letters
from tests.processes import wait_until
from tests.working import working


@pytest.mark.parametrize("order", ["none", "key"])
@pytest.mark.parametrize("is_sanitized", [True, False])  # if not, what can't be written is found out when it is
def test_what_is_no_text_in_an_exception_ends_no_worker(
    app: TaskQ, backend: str, order: Literal["none", "key"], is_sanitized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    again = Retry(1, base=0)
    odd = type("Odd", (Exception,), {"__qualname__": name, "__module__": "builtins"})
    if not is_sanitized:
        monkeypatch.setattr("taskq.worker.retries._storable", str)

    @app.task(order=order, key="k", retry=again)
    def on_thread() -> None:
        raise ValueError(name)

    @app.task(order=order, key="k", retry=again)
    async def on_loop() -> None:
        raise odd

    for _ in range(2):
        on_thread.delay()
        on_loop.delay()
    with working(app, backend):
        wait_until(lambda: dead_letters(app.broker.admin(), "default") == 4, "all are dead letters")
    letters = list(list_dead(app.broker, "default"))
    if is_sanitized:
        assert Counter((one.type, one.message) for one in letters) == {
            ("ValueError", "caf\\udce9.txt"): 2,
            ("caf\\udce9.txt", ""): 2,
        }
        assert {one.trip.attempts for one in letters} == {2}
    else:
        assert {(one.type, one.trip) for one in letters} == {("UnicodeEncodeError", NEW)}


def test_names_that_are_too_long_are_told_short(app: TaskQ) -> None:
    @app.task(retry=Retry(1, base=0))
    def fails() -> None:
        raise type("X" * 1_000_000, (Exception,), {})

    fails.delay()
    app.producer.send("default", b'{"task": "%s"}' % (b"x" * 1_000_000))

    def given_up(times: int) -> list[DeadLetter]:
        """When all are, so often retried."""
        letters = [one for one in list_dead(app.broker, "default") if one.trip.retried == times]
        return letters if len(letters) == 2 else []

    with working(app):
        for times in range(3):
            wait_until(partial(given_up, times), "both are dead letters")
            letters = given_up(times)
            assert {one.type[-3:] for one in letters} == {"...", "und"}
            for one in letters:
                own = sum(len(value) for name, value in one.record.headers if "traceback" not in name)
                assert own < 5000
            retry_dead(app.broker, "default", ALL)
