"""Real worker processes for tests, and waiting for what they do, always with a bound."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskq import TaskQ
from taskq.broker.port import Committed, TopicPartition
from taskq.decorators import Task
from taskq.worker.standing import progress_of

WAIT_S = 30.0
"""How long a test waits for what should come soon, before it fails."""


def wait_until(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    """Return once `condition()` is true; fail with `what` if that takes longer than `within_s`."""
    clock, until = threading.Event(), time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= until:
            raise AssertionError(f"not within {within_s} s: {what}")
        clock.wait(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # it has just gone, or this is no Linux
        return not stat.parent.exists() and stat.parent.parent.exists()


class WorkerProcess:
    """`taskq worker` with its standard error collected line by line."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskq", "worker", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, within_s: float = WAIT_S) -> re.Match[str]:
        """The first match of `pattern` in what it has said."""
        found: list[re.Match[str]] = []

        def looked() -> bool:
            match = re.search(pattern, self.log)
            if match:
                found.append(match)
            elif self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.log}")
            return bool(match)

        wait_until(looked, f"{pattern!r} in\n{self.log}", within_s)
        return found[0]

    def wait_ready(self) -> WorkerProcess:
        self.wait_for(r"holds ")
        return self

    def scrape(self, path: str = "/metrics") -> str:
        url = self.wait_for(r"http://[^\s]+/metrics").group()
        with urllib.request.urlopen(url.replace("/metrics", path), timeout=10) as answer:
            return str(answer.read().decode())

    def kill(self) -> None:
        """SIGKILL: it can't say or save anything."""
        self.process.kill()
        self.process.wait(WAIT_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._reader.join(WAIT_S)
        assert not self._reader.is_alive(), "something that it started goes on"
        assert self.process.stderr is not None
        self.process.stderr.close()


class Bench:
    """A broker, an app that uses it (tests/apps), workers for it, and what its tasks wrote down."""

    def __init__(self, folder: Path, module: str, broker: str | None = None) -> None:
        self.folder = folder
        self.module = module
        self.broker = str(folder / "log") if broker is None else broker
        self.audit = folder / "audit"
        self.audit.touch()
        self.workers: list[WorkerProcess] = []
        self.environment = {"TASKQ_BROKER": self.broker, "TEST_AUDIT": str(self.audit)}
        sys.modules.pop(module, None)  # an app that nothing has used yet
        self.app: TaskQ = importlib.import_module(module).app
        self.app.configure(broker=self.broker)

    def task(self, name: str) -> Task[Any, Any]:
        return self.app.tasks[f"{self.module}.{name}"]

    def start_worker(self, group: str, *arguments: str) -> WorkerProcess:
        worker = WorkerProcess(["-g", group, "-A", self.module, "--metrics-port=0", *arguments], self.environment)
        self.workers.append(worker)
        return worker

    def audited(self) -> list[str]:
        """The lines that tasks wrote so far, in the order in which they did."""
        return self.audit.read_text().splitlines()

    def wait_for_lines(self, count: int, within_s: float = WAIT_S) -> list[str]:
        wait_until(lambda: self.audit.read_bytes().count(b"\n") >= count, f"{count} lines of audit", within_s)
        return self.audited()

    def unfinished(self, group: str) -> int:
        """How much `group` has not finished of all topics, as committed."""
        with TaskQ("looks", broker=self.broker) as app:
            admin, reader = app.broker.admin(), app.broker.reader()
            committed = admin.describe_group(group).committed
            total = 0
            for topic in self.app.topics(group):
                for number in range(admin.partitions(topic) if topic in admin.topics() else 0):
                    tp = TopicPartition(topic, number)
                    bounds = reader.bounds(tp)
                    known = committed.get(tp, Committed(bounds.start))
                    progress = progress_of(known.offset, known.metadata)
                    total += bounds.end - progress.low - progress.finished_above
            return total

    def dead_letters(self, group: str) -> list[dict[str, str]]:
        """The `taskq-dead-` headers of a group's dead letters, without that prefix; `value` is the record's."""
        with TaskQ("looks", broker=self.broker) as app:
            topic = f"{group}.dead"
            if topic not in app.broker.admin().topics():
                return []
            reader, found = app.broker.reader(), []
            for number in range(app.broker.admin().partitions(topic)):
                offset = 0
                while records := reader.read(TopicPartition(topic, number), offset):
                    offset = records[-1].offset + 1
                    for record in records:
                        said = {name.removeprefix("taskq-dead-"): text.decode() for name, text in record.headers}
                        found.append({**said, "value": repr(record.value)})
            return found

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.app.close()


@contextmanager
def bench(folder: Path, module: str = "tests.apps.audit", broker: str | None = None) -> Iterator[Bench]:
    """A bench for one test. `broker` is a URL; without it, the log is in `folder`."""
    made = Bench(folder, module, broker)
    try:
        yield made
    finally:
        made.close()


def metric(page: str, name: str, **labels: str) -> list[float]:
    """The values of a metric's series that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in page.splitlines() if re.match(rf"{name}(\{{|\s)", line)]
    return [float(line.rpartition(" ")[2]) for line in lines if all(text in line for text in wanted)]
