"""The whole site on this machine: a web server and workers as child processes, sharing one folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from urllib.parse import urlencode, urlsplit

from attrs import frozen

from examples.sns_feed import store
from examples.sns_feed.backlog import GROUP, Backlog
from examples.sns_feed.database import DATABASE_VARIABLE, Database
from taskq.broker import connect
from taskq.config import load_settings

START_S = 30.0
ANSWER_S = 300.0
STOP_S = 15.0
LOOK_S = 0.02
WATCH_S = 0.5
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ROOT = Path(__file__).parents[2]


class SiteError(Exception):
    """A process of the site did not do what it was started for."""


class Child:
    """A process whose lines are handed on as they come.

    It has a process group of its own, so Ctrl-C in the terminal reaches only us, and we stop it in order.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: dict[str, str], show: Callable[[str], None]
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.pid = self._process.pid
        self._show = show
        # The condition guards the lines; the reader adds, whoever waits reads.
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, name=f"{name} output")
        self._reader.start()

    def wait_for(self, pattern: str, timeout: float = START_S) -> re.Match[str]:
        """Wait for a line; return the match. Raises SiteError if the process ends or takes longer."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines:
                    if found := re.search(pattern, line):
                        return found
                if self._ended:
                    raise SiteError(f"{self.name} ended with exit code {self._process.wait()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise SiteError(f"{self.name} did not say {pattern!r} within {timeout:.0f} s")

    def check(self) -> None:
        """Raise SiteError if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise SiteError(f"{self.name} ended with exit code {code}")

    def ask_to_stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def stopped(self, timeout: float) -> int:
        """Wait for the end, killing the process at the time-out; return its exit code."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._show(f"{self.name:9}| {line.rstrip()}")
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@frozen
class Posted:
    """A post made over HTTP, and how long the answer took."""

    post_id: int
    seconds: float


class Site:
    """The running site, in a folder with a seeded database. A context manager: everything it starts, it stops."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        port: int = 0,
        show: Callable[[str], None] = print,
        broker: str | None = None,
    ) -> None:
        """Without a `broker` there is a log in the folder."""
        self.database = Database(folder / "feed.sqlite3")
        self.settings = load_settings(broker=broker or str(folder / "log"))
        self._environment = os.environ | {
            DATABASE_VARIABLE: str(self.database.path),
            "TASKQ_BROKER": self.settings.broker,
            "PYTHONUNBUFFERED": "1",
        }
        self._workers = workers
        self._port = port
        self._show = show
        self._children: list[Child] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.push(self._stop)
            broker = opening.enter_context(closing(connect(self.settings)))
            self.backlog = Backlog(broker)
            web = self._start("web", "-m", "examples.sns_feed.web", "--port", str(self._port))
            for number in range(1, self._workers + 1):
                self.start_worker(f"worker {number}")
            self.url = web.wait_for(r"running on (http://\S+)")[1]
            self.wait(lambda: self.backlog.workers() == self._workers, START_S, f"{self._workers} workers")
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def start_worker(self, name: str) -> Child:
        command = ("-m", "taskq", "worker", "-g", GROUP, "-A", "examples.sns_feed.tasks", "--metrics-port", "0")
        return self._start(name, *command)

    def post(self, author_id: int, text: str, mode: store.Mode) -> Posted:
        """Post over HTTP, as a browser would."""
        form = urlencode({"text": text, "mode": mode})
        started = time.perf_counter()
        with closing(HTTPConnection(urlsplit(self.url).netloc, timeout=ANSWER_S)) as connection:
            connection.request("POST", f"/users/{author_id}/posts", form, FORM)
            answer = connection.getresponse()
            seconds = time.perf_counter() - started
        if answer.status != 303:
            raise SiteError(f"posting was answered with {answer.status}")
        return Posted(int(answer.headers["Location"].rpartition("/")[2]), seconds)

    def wait(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until that is so. Raises SiteError when it takes longer, or a process ends meanwhile."""
        deadline = time.monotonic() + timeout
        while not reached():
            self.check()
            if time.monotonic() > deadline:
                raise SiteError(f"no {what} within {timeout:.0f} s")
            time.sleep(LOOK_S)

    def wait_until_delivered(self, post_id: int, timeout: float) -> None:
        """Wait until every follower has the post and no invocation is left. Raises SiteError."""
        self.wait(lambda: not self.wrong_rows(post_id), timeout, "delivery to everyone")
        self.wait(lambda: self.backlog.read() == 0, timeout, "empty backlog")

    def watch(self) -> NoReturn:
        """Stay until a process ends (SiteError), or until interrupted."""
        while True:
            self.check()
            time.sleep(WATCH_S)

    def check(self) -> None:
        """Raise SiteError if a process has ended."""
        for child in self._children:
            child.check()

    def wrong_rows(self, post_id: int) -> str:
        """What is wrong with the feed rows of a post: empty if each follower has it exactly once, and nobody else."""
        with self.database.reading() as db:
            post = store.find_post(db, post_id)
            assert post is not None
            rows, undelivered = store.delivery(db, post_id).rows, store.undelivered(db, post)
        if undelivered or rows != post.author.followers:
            return f"{rows:,} rows for {post.author.followers:,} followers, {undelivered:,} of whom have none"
        return ""

    def _start(self, name: str, *arguments: str) -> Child:
        child = Child(name, arguments, self._environment, self._show)
        self._children.append(child)
        return child

    def _stop(self, _: object, error: BaseException | None, __: object) -> None:
        """Stop all processes. Raises SiteError if one ended badly, unless an error was on its way already."""
        self.database.close()
        for child in self._children:
            child.ask_to_stop()
        deadline = time.monotonic() + STOP_S
        codes = {child.name: child.stopped(max(deadline - time.monotonic(), 0.1)) for child in self._children}
        self._children.clear()
        # uvicorn stops in order and then lets the signal have its way.
        wrong = [f"{name} with exit code {code}" for name, code in codes.items() if code not in {0, -signal.SIGTERM}]
        if wrong and not isinstance(error, Exception):
            raise SiteError(f"stopped out of order: {', '.join(wrong)}")
