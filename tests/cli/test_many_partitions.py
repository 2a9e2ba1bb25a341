"""A topic of a thousand partitions under the usual soft limit of open files, with the real program."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.segment import OPEN, OPEN_MAX
from taskq.broker.port import TopicPartition
from taskq.errors import BrokerUnavailable
from tests.processes import WorkerProcess, wait_until

COUNT = 1000
APP = """
import os
from taskq import TaskQ
app = TaskQ("many")
@app.task(topic="many", group="many", key=lambda number: str(number))
def run(number: int) -> None:
    with open(os.environ["TEST_AUDIT"], "a") as audit:
        audit.write(f"{number}\\n")
"""
PUBLISH = "import many; [many.run.delay(number) for number in range(3000)]"


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.alone
def test_a_thousand_partitions_work(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(APP)
    (tmp_path / "audit").touch()
    environment = {
        "TASKQ_BROKER": str(tmp_path / "log"),
        "TEST_AUDIT": str(tmp_path / "audit"),
        "PYTHONPATH": str(tmp_path),
    }

    def run(*command: str, raised: bool = False) -> str:
        ran = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=None if raised else limit_files,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    began = time.monotonic()
    run("-m", "taskq", "topics", "create", "many", f"--partitions={COUNT}")
    assert time.monotonic() - began < 10
    run("-c", PUBLISH, raised=True)  # two files for each partition: a publisher of so many needs a higher limit
    described = json.loads(run("-m", "taskq", "topics", "describe", "many", "--json"))
    assert sum(part["records"] for part in described["partitions"]) == 3000
    assert sum(1 for part in described["partitions"] if part["records"]) > 900
    assert len(json.loads(run("-m", "taskq", "topics", "list", "--json"))) == 1

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        worker = WorkerProcess(["-g", "many", "-A", "many", "--metrics-port=0"], environment)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    try:
        audit = tmp_path / "audit"
        wait_until(lambda: audit.read_bytes().count(b"\n") >= 3000, f"all have run\n{worker.log}", within_s=60)
        assert sorted(map(int, audit.read_text().split())) == list(range(3000))
        assert worker.stop() == 0
    finally:
        worker.close()


def test_few_active_segments_are_open_at_once(tmp_path: Path) -> None:
    broker = EmbeddedBroker(str(tmp_path), partitions_default=OPEN_MAX + 100)
    try:
        producer = broker.producer()
        for _ in range(2):
            for number in range(OPEN_MAX + 100):
                producer.send("feed", b"x", b"%d" % number)
            broker._flusher.sync()
        used = [one for one in broker._directory.opened() if one.end()]
        assert len(used) > 200
        assert sum(one._segment is not None for one in used) <= OPEN_MAX
        assert sum(one.end() for one in used) == 2 * (OPEN_MAX + 100)
    finally:
        broker.close()


@pytest.mark.parametrize("durability", ["os", "interval:20", "fsync"])
def test_the_oldest_is_closed_and_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    from taskq.config import Durability

    monkeypatch.setattr(OPEN, "limit", 4)
    broker = EmbeddedBroker(str(tmp_path), partitions_default=20, durability=Durability.parse(durability))
    try:
        producer = broker.producer()
        for number in range(400):
            producer.send("feed", b"%d" % number, b"%d" % number)
            if number % 20 == 0:
                broker._flusher.sync()
        opened = broker._directory.opened()
        if durability != "interval:20":
            assert sum(one._segment is not None for one in opened) <= 4
        found = []
        for number in range(20):
            offset = 0
            while records := broker.reader().read(TopicPartition("feed", number), offset):
                found += [int(record.value or b"") for record in records]
                offset = records[-1].offset + 1
        assert sorted(found) == list(range(400))
    finally:
        broker.close()


def test_too_many_open_files_is_said_and_passes(tmp_path: Path) -> None:
    broker = EmbeddedBroker(str(tmp_path), partitions_default=200)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    sent = 0
    try:
        producer = broker.producer()
        producer.send("feed", b"0", b"0")
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
        try:
            said = ""
            while not said:
                sent += 1
                try:
                    producer.send("feed", b"%d" % sent, b"%d" % sent)
                except BrokerUnavailable as error:
                    said = str(error)
            assert re.search(r"too many open files: this process may have \d+\. Raise that", said)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in range(sent, 400):
            producer.send("feed", b"%d" % number, b"%d" % number)
        reader = broker.reader()
        found = [int(r.value or b"") for n in range(200) for r in reader.read(TopicPartition("feed", n), 0)]
        assert sorted(found) == list(range(400))
    finally:
        broker.close()
