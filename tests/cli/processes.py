"""`taskq` as a process of its own, whose output is read as it comes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

from prometheus_client.parser import text_string_to_metric_families

SECONDS_MAX = 40.0


class Process:
    """One running `taskq` command."""

    def __init__(self, *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "taskq", *arguments],
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self._news = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self.said += line
                self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until `pattern` has been printed so often; return its matches (their first group)."""

        def found() -> bool:
            return self._has_ended or len(re.findall(pattern, self.said)) >= times

        with self._news:
            self._news.wait_for(found, SECONDS_MAX)
        matches: list[str] = re.findall(pattern, self.said)
        assert len(matches) >= times, f"{pattern!r} not {times} times in:\n{self.said}"
        return matches

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given; wait for the end and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(SECONDS_MAX)
        self._reader.join(SECONDS_MAX)
        return code

    def insist(self, number: int) -> int:
        """Send a signal again and again until the process ends: signals in quick succession count as one."""
        for _ in range(20):
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                break
        return self.end()

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()

    def get(self, path: str) -> tuple[int, str]:
        """What its metrics page answers."""
        url = self.wait_for(r"(http://\S+)/metrics")[0]
        try:
            with urllib.request.urlopen(url + path, timeout=SECONDS_MAX) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Scrape until `metric` has come to be `value`: what ran is counted when it is committed."""
        deadline = time.monotonic() + SECONDS_MAX
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
