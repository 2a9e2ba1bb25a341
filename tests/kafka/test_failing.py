"""When brokers fail: away, back again, stopped for a while, another leader. Nothing is lost, and workers live on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from taskq import TaskQ
from taskq.errors import MessageTooLarge
from tests.kafka.cluster import Cluster
from tests.kafka.jars import Jars
from tests.kafka.looking import finished, until, wait_for_share
from tests.kafka.urls import url
from tests.processes import WAIT_S, Bench, WorkerProcess, bench

NOBODY = "kafka://127.0.0.1:1?sasl.username=me&sasl.password=hush&socket.timeout.ms=2000"


class Publishing:
    """A thread that publishes one number after the other."""

    def __init__(self, here: Bench, task: str = "note") -> None:
        self.sent: list[int] = []
        self.errors: list[BaseException] = []
        self._task = here.task(task)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.002):
            try:
                self._task.delay(number)
                self.sent.append(number)
            except Exception as error:
                self.errors.append(error)
            number += 1

    def more(self, count: int = 200, within_s: float = 30.0) -> None:
        """Until so many more are published."""
        goal = len(self.sent) + count
        until(lambda: len(self.sent) >= goal, f"{count} more are published", within_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)


@contextmanager
def one_node(folder: Path) -> Iterator[Cluster]:
    """A node of one's own, to be stopped."""
    folder.mkdir()
    cluster = Cluster.start(folder)
    try:
        yield cluster
    finally:
        cluster.close()


def check_all_ran(here: Bench, publishing: Publishing, repeats_max: int) -> None:
    """All that was acknowledged has run, and hardly any of it twice."""
    until(lambda: {*map(str, publishing.sent)} <= {*here.audited()}, "all have run")
    finished(here)
    assert publishing.errors == []
    lines = here.audited()
    print(f"{len(publishing.sent)} published, {len(lines) - len(set(lines))} repeats")
    assert len(lines) - len(set(lines)) <= repeats_max


def taskq(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taskq", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env={**os.environ, **environ})


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker", "-g", "feed", "-A", "tests.apps.audit", "--metrics-port=0"),
        ("send", "tests.apps.audit.note", "--args", "[1]", "-A", "tests.apps.audit"),
        ("topics", "list"),
        ("groups", "describe", "feed"),
        ("groups", "list"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_who_can_reach_nobody_is_told_soon_and_without_secrets(arguments: tuple[str, ...]) -> None:
    began = time.monotonic()
    ran = taskq(*arguments, TASKQ_BROKER=NOBODY)
    assert ran.returncode == 1
    assert time.monotonic() - began < 15
    said = ran.stdout + ran.stderr
    assert re.search(r"taskq: error: .*kafka://127.0.0.1:1\b.*check that the brokers run", said)
    assert "hush" not in said
    assert "Traceback" not in said


def test_a_supervisor_tries_again_and_waits_longer_each_time() -> None:
    supervisor = WorkerProcess(
        ["-g", "feed", "-A", "tests.apps.audit", "-p", "2", "--no-metrics"], {"TASKQ_BROKER": NOBODY}
    )
    try:
        for pause in ("0.1", "0.2"):
            supervisor.wait_for(rf"worker 0 .* exit code 1.*the next starts in {pause} s")
        assert supervisor.stop() in (0, 1)
        assert "hush" not in supervisor.log
    finally:
        supervisor.close()


def test_what_is_over_the_topics_limit_is_too_large(app: TaskQ, empty: Cluster) -> None:
    empty.tool(
        "kafka-topics", "--create", "--topic", "small", "--partitions", "1", "--config", "max.message.bytes=2000"
    )

    @app.task(topic="small")
    def note(text: str) -> None:
        pass

    note.delay("fits")
    with pytest.raises(MessageTooLarge, match="publishing to topic 'small'"):
        note.delay("x" * 5000)
    note.delay("fits again")


@pytest.mark.alone
@pytest.mark.timeout(150)
def test_the_broker_is_restarted_while_all_work(kafka_jars: Jars, tmp_path: Path) -> None:
    with one_node(tmp_path / "kafka") as cluster, bench(tmp_path, broker=url(cluster)) as here:
        worker = here.start_worker("feed").wait_ready()
        with Publishing(here) as publishing:
            publishing.more()
            for stop in (cluster.node(1).stop, cluster.node(1).kill):
                stop()
                away = time.monotonic() + 8
                until(lambda away=away: time.monotonic() > away, "longer than a session")  # type: ignore[misc]
                cluster.node(1).start()
                cluster.wait_ready()
                publishing.more()
        check_all_ran(here, publishing, repeats_max=500)
        assert worker.stop() == 0


@pytest.mark.alone
@pytest.mark.timeout(150)
def test_a_worker_outlives_brokers_that_are_away_longer_than_anything_waits(kafka_jars: Jars, tmp_path: Path) -> None:
    """Longer than it tries to commit, to look and, here, to publish: outcomes and progress are kept until they can be
    told."""
    settings = {"delivery.timeout.ms": "5000", "request.timeout.ms": "2000", "socket.timeout.ms": "2000"}
    with one_node(tmp_path / "kafka") as cluster, bench(tmp_path, broker=url(cluster, settings)) as here:
        worker = here.start_worker("feed").wait_ready()
        wait_for_share(here, 1)
        here.task("wait_for_file").delay("back")
        here.task("wait_for_file_async").delay("back")
        here.wait_for_lines(2)
        here.task("note_when_done").map([(number, 2.0) for number in range(10)])
        here.task("reject").options(delay=3.0).map([(number,) for number in range(10)])
        here.wait_for_lines(12)
        cluster.node(1).kill()
        away = time.monotonic() + 70
        until(lambda: time.monotonic() > away, "it is away for long", 80)
        assert worker.process.poll() is None, worker.log
        (tmp_path / "back").touch()
        cluster.node(1).start()
        cluster.wait_ready()
        until(lambda: len(here.dead_letters("feed")) >= 10, "those that were delayed are given up", 60)
        finished(here)
        ends = {line for line in here.audited() if line.startswith("end ")}
        assert ends == {"end back", *(f"end {number}" for number in range(10))}
        assert worker.stop() == 0


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_the_broker_is_stopped_for_longer_than_a_session(kafka_jars: Jars, tmp_path: Path) -> None:
    with one_node(tmp_path / "kafka") as cluster, bench(tmp_path, broker=url(cluster)) as here:
        worker = here.start_worker("feed").wait_ready()
        with Publishing(here) as publishing:
            publishing.more()
            cluster.node(1).pause()
            away = time.monotonic() + 12
            until(lambda: time.monotonic() > away, "it is away")
            cluster.node(1).resume()
            cluster.wait_ready()
            publishing.more(within_s=60)
        check_all_ran(here, publishing, repeats_max=500)
        assert worker.stop() == 0


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_leaders_move(kafka3: Cluster, tmp_path: Path) -> None:
    """One after the other is killed, and comes back, and leads again."""
    with bench(tmp_path, broker=url(kafka3)) as here:
        with TaskQ("creates", broker=here.broker) as app:
            app.broker.admin().create_topic("feed", 8, replication=3)
        worker = here.start_worker("feed").wait_ready()
        with Publishing(here) as publishing:
            publishing.more()
            for number in (1, 2):
                kafka3.node(number).kill()
                publishing.more(within_s=60)
                kafka3.node(number).start()
                kafka3.wait_ready()
            kafka3.tool("kafka-leader-election", "--election-type", "preferred", "--all-topic-partitions")
            publishing.more(within_s=60)
        check_all_ran(here, publishing, repeats_max=2000)
        assert worker.process.poll() is None
        assert worker.stop() == 0
