"""Compaction beside writers and readers in other processes, killed with SIGKILL in the middle of its work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from taskq.broker.log.batch import encode_one
from taskq.broker.log.partition import Partition
from tests.broker.log.conftest import NOW_MS, OpenPartition, verify
from tests.broker.log.test_compaction import FILES, run
from tests.broker.log.test_compaction_cut import Faulty
from tests.broker.log.test_partition import read_all
from tests.processes import WAIT_S, wait_until

KEYS = 17
ROUNDS = 2
KILLS = 8


class Kills(Faulty):
    """At the n-th operation that changes something, the process is killed."""

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def open_one(directory: str) -> Partition:
    return Partition(FILES, directory, "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=3000)


def write(directory: str, count: int) -> None:
    """Append records whose key and value follow from their offset; every third of a key is a tombstone."""
    partition = open_one(directory)
    for offset in range(partition.end(), partition.end() + count):
        value = None if offset // KEYS % 3 == 2 else b"%d" % offset
        partition.append(encode_one(value, b"k%d" % (offset % KEYS), (), NOW_MS), 1, NOW_MS)
    print(partition.end(), flush=True)


def check(partition: Partition, directory: str) -> None:
    """Read all once. Nothing is other than it was, and of every key there is the last."""
    end = partition.end()
    last = -1
    seen: dict[int, int] = {}
    for record in read_all(partition):
        assert record.offset > last
        last = record.offset
        assert record.key == b"k%d" % (record.offset % KEYS)
        assert record.value == (None if record.offset // KEYS % 3 == 2 else b"%d" % record.offset)
        seen[record.offset % KEYS] = record.offset
    assert all(seen[offset % KEYS] >= offset for offset in range(max(0, end - KEYS), end)), directory


def read_on_and_on(directory: str) -> None:
    """Until standard input is closed. Reads from the start, and reads on with a place of its own, slowly."""
    partition = open_one(directory)
    place = partition.cursor(0)
    os.set_blocking(0, False)
    rounds = 0
    while not _is_closed():
        check(partition, directory)
        place = place if place.read(200) else partition.cursor(0)
        rounds += 1
        if rounds == 3:
            print("going", flush=True)
    print(rounds, flush=True)


def _is_closed() -> bool:
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


def compact_and_be_killed(directory: str, seed: int, times: int) -> None:
    """Each time in a child, at some operation; prints how many were killed before they were done."""
    chosen = random.Random(seed)
    killed = 0
    for _ in range(times):
        at = chosen.randrange(1, 100)
        child = os.fork()
        if not child:
            run(open_one(directory), files=Kills(at), segment_bytes=9000, delete_retention_ms=1 << 40)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        killed += os.WIFSIGNALED(status)
    print(killed, flush=True)


def start(function: str, *arguments: object) -> subprocess.Popen[str]:
    code = f"from tests.broker.log.test_compaction_processes import *; {function}(*{arguments!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=WAIT_S)
    return process.returncode, out, error


def test_killed_while_others_write_and_read_it_leaves_every_key_its_last_value(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    directory = str(tmp_path)
    partition = open_partition(segment_bytes_max=3000)
    killed = 0
    with ExitStack() as stack:
        readers = [stack.enter_context(start("read_on_and_on", directory)) for _ in range(2)]
        for reader in readers:
            stack.callback(reader.kill)
        for _ in range(ROUNDS):
            writer = start("write", directory, 300)
            compactor = start("compact_and_be_killed", directory, chosen.randrange(1 << 30), KILLS)
            code, _, error = ended(writer)
            assert code == 0, error
            code, out, error = ended(compactor)
            assert code == 0, error
            killed += int(out)
            check(partition, directory)
            verify(tmp_path, partition.end())
        for reader in readers:
            code, out, error = ended(reader)
            assert code == 0, error
            assert int(out.split()[-1]) > 10
    assert killed > ROUNDS
    wait_until(lambda: not run(partition, segment_bytes=9000, delete_retention_ms=1 << 40).has_worked, "all is clean")
    partition.roll()
    run(partition, segment_bytes=9000, delete_retention_ms=1 << 40)
    check(partition, directory)
    assert len(read_all(partition)) == KEYS
    assert partition.end() == 300 * ROUNDS
