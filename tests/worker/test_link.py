"""The wire between a supervisor and a worker: what goes wrong at either end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from taskq.worker.link import Child, Parent, Report
from tests.processes import WAIT_S, wait_until

Serve = Callable[..., Child]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a worker's end with these arguments; gives the supervisor's."""
    with ExitStack() as stack:

        def serve(*arguments: Any) -> Child:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            stack.enter_context(Parent(theirs.detach(), *arguments)._socket)
            return Child(ours)

        yield serve


def answer(child: Child) -> Report | None:
    child.ask()
    return child.collect(time.monotonic() + WAIT_S)


def test_a_report_that_fails_is_told_in_the_log_and_the_next_is_given(serve: Serve, caplog: pytest.LogCaptureFixture):
    gone = threading.Event()
    asked = [0]

    def report() -> Report:
        asked[0] += 1
        if asked[0] == 1:
            raise ValueError("it can't be seen")
        return Report({}, (), ("it is new",))

    child = serve(report, gone.set)
    child.ask()
    wait_until(lambda: "it can't be seen" in caplog.text, "it is logged")
    told = answer(child)
    assert told is not None
    assert told.ready == ("it is new",)
    assert not gone.is_set()
    child.drain()
    assert gone.wait(WAIT_S)


def test_what_can_not_be_understood_ends_the_link_and_so_the_worker(serve: Serve, caplog: pytest.LogCaptureFixture):
    gone = threading.Event()
    child = serve(lambda: Report({}, (), ()), gone.set)
    child._socket.send(b"nonsense\n")
    assert gone.wait(WAIT_S)
    child.drain()
    assert "can't be served any more" in caplog.text


def test_a_worker_is_told_to_stop_at_once(serve: Serve):
    stopped = threading.Event()
    child = serve(lambda: Report({}, (), ()), lambda: None, stopped.set)
    child.stop()
    assert stopped.wait(WAIT_S)
    assert answer(child) is not None
    child.drain()


def test_a_report_that_can_not_be_understood_is_none(caplog: pytest.LogCaptureFixture):
    ours, theirs = socket.socketpair()
    child = Child(ours)
    with theirs:
        theirs.send(b'{"metrics": 7}\n')
        assert child.newest() is None
        assert child.is_open
    assert child.newest() is None
    assert not child.is_open
    assert "what is no report" in caplog.text
    child.drain()
