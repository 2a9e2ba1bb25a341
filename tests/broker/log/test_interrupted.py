"""What a signal handler raises, at any moment, leaves no lock behind in a process that lives on, and a sound log."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from taskq.broker.log.locks import at_once
from taskq.broker.port import WouldBlock
from tests.broker.log.conftest import OpenPartition
from tests.broker.log.test_partition import read_all

INTERRUPTED = """
import logging, signal, sys
from taskq.broker.log.batch import encode_one
from taskq.broker.log.files import RealFiles
from taskq.broker.log.locks import lock, try_lock, open_lockable, close_lockable, unlock
from taskq.broker.log.partition import Partition
from taskq.broker.port import WouldBlock

class Interrupted(BaseException):
    pass

def interrupt(*_):
    global is_armed
    if is_armed:
        is_armed = False
        raise Interrupted

class Files(RealFiles):
    def sync(self, fd):
        pass
    def sync_directory(self, path):
        pass

root, does = sys.argv[1], sys.argv[2]
files = Files()
partition = Partition(files, root, "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=3000)
acknowledged, number, interrupts, is_armed, wait = {}, 0, 0, False, True
was_interrupted = True  # what follows is not, or rolling would never end on a slow machine
logging.disable(logging.CRITICAL)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
while interrupts < 600:
    number += 1
    batch = encode_one(b"%d" % number, None, (), 1)
    try:
        is_armed = not was_interrupted
        offset = partition.append(batch, 1, 1, wait=wait)
        acknowledged[offset] = number
        if does == "sync":
            partition.sync()
        elif does == "roll" and not number % 7:
            partition.roll()
        elif does == "arm":
            partition.wait_for_append(1)
        is_armed = was_interrupted = False
        wait = does != "at once"
    except Interrupted:
        interrupts += 1
        was_interrupted = True
    except WouldBlock:
        is_armed, wait = False, True
signal.setitimer(signal.ITIMER_REAL, 0)
head = open_lockable(files, root + "/head")
directory = open_lockable(files, root, write=False)
held = [partition._mutex.locked(), partition._syncer.mutex.locked(), not try_lock(head), not try_lock(directory)]
print(held, flush=True)
for fd in (head, directory):
    close_lockable(files, fd)
if not any(held):
    for offset, number in acknowledged.items():
        print(offset, number)
"""


@pytest.mark.parametrize("does", ["append", "at once", "sync", "roll", "arm"])
def test_what_a_signal_handler_raises_leaves_no_lock_behind(
    open_partition: OpenPartition, tmp_path: Path, does: str
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), does]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert not ran.returncode, ran.stderr
    held, *acknowledged = ran.stdout.splitlines()
    assert held == "[False, False, False, False]"
    assert len(acknowledged) > 100
    partition = open_partition()
    there = {record.offset: record.value for record in read_all(partition)}
    for line in acknowledged:
        offset, number = line.split()
        assert there[int(offset)] == number.encode()


def test_a_mutex_is_taken_at_once_or_not_at_all() -> None:
    mutex = threading.Lock()
    with at_once(mutex):
        assert mutex.locked()
        with pytest.raises(WouldBlock), at_once(mutex):
            pass
        assert mutex.locked()
    assert not mutex.locked()
