"""Guarantee 9: a torn tail is not corruption, and corruption is never served: a damaged batch is reported with file and
position. (Every bit and every cut: tests/broker/log; every state of a disk: tests/simulation.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import RealFiles
from taskq.broker.port import TopicPartition
from tests.processes import Bench, bench, wait_until


def only_log(here: Bench, partition: int) -> Path:
    (log,) = (Path(here.broker) / "topics" / "feed" / str(partition)).glob("*.log")
    return log


def publish(here: Bench, count: int) -> int:
    """Publish numbers from 0 on under one key; the partition they are in."""
    for number in range(count):
        here.task("note").options(key="same").delay(number)
    reader = here.app.broker.reader()
    (partition,) = [number for number in range(8) if reader.bounds(TopicPartition("feed", number)).end == count]
    return partition


def test_a_torn_tail_is_cut_and_what_is_whole_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as here:
        partition = publish(here, 10)
        log = only_log(here, partition)
        raw = log.read_bytes()
        log.write_bytes(raw[:-7])  # what a power cut left of the last write
        monkeypatch.setattr(RealFiles, "boot_id", lambda self: (1, 2))
        here.app.close()
        (log.parent / "checkpoint").unlink()  # closing was not what happened before the power went
        after = EmbeddedBroker(here.broker)
        assert after.reader().bounds(TopicPartition("feed", partition)).end == 9
        after.close()
        monkeypatch.undo()
        worker = here.start_worker("feed")
        assert sorted(here.wait_for_lines(9)) == [str(number) for number in range(9)]
        assert "damaged" not in worker.log
        assert worker.stop() == 0


def test_corruption_is_never_served_and_says_where_it_is(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        partition = publish(here, 10)
        log = only_log(here, partition)
        raw = bytearray(log.read_bytes())
        size = len(raw) // 10
        raw[6 * size + 70] ^= 0x10
        log.write_bytes(raw)
        worker = here.start_worker("feed")
        here.task("note").options(key="another").delay(100)
        assert sorted(here.wait_for_lines(7), key=int) == ["0", "1", "2", "3", "4", "5", "100"]
        worker.wait_for(f"{log.name}: damaged at byte {6 * size}")
        wait_until(lambda: here.unfinished("feed") == 4, "the damaged one and those after it are left")
        assert worker.stop() == 0
        verified = subprocess.run(
            [sys.executable, "-m", "taskq", "log", "verify", here.broker, "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert verified.returncode == 1
        (found,) = json.loads(verified.stdout)["findings"]
        assert (found["severity"], found["file"], found["position"]) == ("damage", str(log), 6 * size)
        assert (found["offset"], found["next_offset"]) == (6, 7)
