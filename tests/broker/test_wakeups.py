from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names
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
import gc
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
    assert os.listdir(waiters.group) == []
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


def test_members_that_come_and_go_leave_no_descriptor_and_no_file(waiters: Waiters, bell: Bell) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    gc.collect()  # what earlier tests left open closes now and not while we count
    before = descriptors()
    for number in range(20):
        member = waiters.join(f"m{number}")
        bell.ring_group(waiters.group)
        assert member.wait(WAIT_S) == GROUP_CHANGED
        member.close()
    bell.ring_group(waiters.group)
    assert (descriptors(), os.listdir(waiters.group)) == (before, [])


def test_a_fifo_in_the_making_is_not_taken_for_dead(
    waiters: Waiters, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkfifo = os.mkfifo

    def make_and_be_rung(path: str, mode: int) -> None:
        mkfifo(path, mode)
        bell.ring_group(waiters.group)

    monkeypatch.setattr(os, "mkfifo", make_and_be_rung)
    member = waiters.join("a")
    bell.ring_group(waiters.group)
    assert member.wait(WAIT_S) == GROUP_CHANGED


def test_a_bell_that_cannot_be_rung_is_logged_once_and_fails_nobody(
    waiters: Waiters, bell: Bell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiters.join("a")

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "taskq.broker"):
        patched.setattr(os, "open", refuse)
        patched.setattr(os, "listdir", refuse)
        for _ in range(2):
            bell.ring(waiters.topic, 1 | 1 << SLOT_SHARED)
            bell.ring_group(waiters.group)
    assert [record.getMessage() for record in caplog.records if "Too many open files" in record.getMessage()] == [
        f"can't wake who waits at {waiters.topic}/0: Too many open files; they will look by themselves"
    ]


def test_what_a_killed_member_was_to_be_woken_by_is_removed(tmp_path: Path) -> None:
    code = f"""
import gc
import os
import taskq.broker.wakeups
taskq.broker.wakeups.SLOT_SHARED = 0
from taskq.broker.embedded import EmbeddedBroker
EmbeddedBroker({str(tmp_path)!r}).consumer("g", ["t"])
os.kill(os.getpid(), 9)
"""
    root = str(tmp_path)
    broker = EmbeddedBroker(root)
    try:
        assert subprocess.run([sys.executable, "-c", code], timeout=WAIT_S).returncode == -9
        [dead] = os.listdir(names.group_waiters(root, "g"))
        # The shared slot's number is in its links' names.
        topic = names.topic_waiters(root, "t")
        os.rename(f"{topic}/0-{dead}", f"{topic}/{SLOT_SHARED}-{dead}")
        assert broker.admin().describe_group("g").members == {}
        assert os.listdir(names.group_waiters(root, "g")) == []
        assert os.listdir(topic) == ["lock"]
    finally:
        broker.close()


def test_a_forked_child_does_not_make_a_dead_parent_look_alive(waiters: Waiters, bell: Bell) -> None:
    code = f"""
import os, threading
from taskq.broker.log.files import RealFiles
from taskq.broker.wakeups import NEW_RECORDS, Wakeup
wakeup = Wakeup(RealFiles(), "dead", {waiters.group!r}, [{waiters.topic!r}])
if os.fork() == 0:
    stranger = os.open({waiters.topic + "/../stranger"!r}, os.O_CREAT | os.O_RDWR)
    os.dup2(stranger, wakeup._fd)
    wakeup.ring(NEW_RECORDS)
    print("ready", os.fstat(stranger).st_size, flush=True)
    os.read(0, 1)
    os._exit(0)
threading.Event().wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready 0\n"
        parent.kill()
        parent.wait(WAIT_S)
        assert waiters.join("living").masks == [1]
