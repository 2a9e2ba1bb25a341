from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskq.broker.log.files import RealFiles
from taskq.broker.wakeups import GROUP_CHANGED, NEW_RECORDS, SLOT_SHARED, Bell, Wakeup

WAIT_S = 20.0


class Waiters:
    """A topic's and a group's directory, with who waits there."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.group, self.topic = f"{root}/group", f"{root}/topic"
        self._stack = stack

    def join(self, name: str) -> Wakeup:
        wakeup = Wakeup(RealFiles(), name, self.group, [self.topic])
        self._stack.callback(wakeup.close)
        return wakeup


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def waiters(tmp_path: Path, stack: ExitStack) -> Waiters:
    return Waiters(tmp_path, stack)


@pytest.fixture
def bell(stack: ExitStack) -> Bell:
    bell = Bell()
    stack.callback(bell.close)
    return bell


def test_those_whose_bits_are_set_are_rung_and_no_others(waiters: Waiters, bell: Bell) -> None:
    first, second, third = (waiters.join(name) for name in "abc")
    assert [first.masks, second.masks, third.masks] == [[1], [2], [4]]
    bell.ring(waiters.topic, first.masks[0] | third.masks[0])
    assert (first.wait(WAIT_S), third.wait(WAIT_S)) == (NEW_RECORDS, NEW_RECORDS)
    assert second.wait(0) == b""


def test_a_group_is_rung_as_a_whole(waiters: Waiters, bell: Bell) -> None:
    members = [waiters.join(name) for name in "ab"]
    bell.ring_group(waiters.group)
    assert [member.wait(WAIT_S) for member in members] == [GROUP_CHANGED] * 2


def test_more_than_there_are_slots_share_the_last(waiters: Waiters, bell: Bell) -> None:
    joined = [waiters.join(f"m{number}") for number in range(SLOT_SHARED + 3)]
    assert [wakeup.masks[0] for wakeup in joined[-3:]] == [1 << SLOT_SHARED] * 3
    bell.ring(waiters.topic, 1 << SLOT_SHARED)
    assert [wakeup.wait(WAIT_S) for wakeup in joined[-3:]] == [NEW_RECORDS] * 3
    assert joined[0].wait(0) == b""


def test_a_slot_that_is_left_is_taken_again_and_rung_anew(waiters: Waiters, bell: Bell) -> None:
    first = waiters.join("a")
    bell.ring(waiters.topic, 1)
    first.close()
    second = waiters.join("b")
    assert second.masks == [1]
    bell.ring(waiters.topic, 1)
    assert second.wait(WAIT_S) == NEW_RECORDS


def test_the_slot_of_one_that_was_killed_is_taken_again(waiters: Waiters, bell: Bell, tmp_path: Path) -> None:
    code = f"""
import os
from taskq.broker.log.files import RealFiles
from taskq.broker.wakeups import Wakeup
wakeup = Wakeup(RealFiles(), "dead", {waiters.group!r}, [{waiters.topic!r}])
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=WAIT_S).returncode == -9
    assert os.listdir(waiters.group) == ["dead"]
    bell.ring(waiters.topic, 1)
    bell.ring_group(waiters.group)
    living = waiters.join("living")
    assert living.masks == [1]
    bell.ring(waiters.topic, 1)
    assert living.wait(WAIT_S) == NEW_RECORDS


def test_a_full_fifo_neither_blocks_nor_fails(waiters: Waiters, bell: Bell) -> None:
    waiter = waiters.join("a")
    for _ in range(70_000):
        waiter.ring(NEW_RECORDS)
    bell.ring(waiters.topic, 1)
    assert waiter.wait(WAIT_S)


def test_ringing_after_close_does_nothing_from_any_thread(waiters: Waiters, bell: Bell) -> None:
    waiter = waiters.join("a")

    def ring() -> None:
        for _ in range(20_000):
            waiter.ring(NEW_RECORDS)

    rung = threading.Thread(target=ring)
    rung.start()
    waiter.close()
    rung.join(WAIT_S)
    waiter.ring(NEW_RECORDS)
    bell.ring(waiters.topic, 1)
    assert os.listdir(waiters.group) == []
