"""Running command lines, in this process or in their own, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from taskq.cli import run
from tests.cli.processes import Process


@frozen
class Said:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        """The cells, headings first; a cell ends at two spaces."""
        return [line.split() for line in self.out.splitlines()]


Taskq = Callable[..., Said]


@pytest.fixture
def taskq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Taskq:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\npartitions = 2\n")

    def taskq(*arguments: str) -> Said:
        code = run(arguments)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return taskq


Start = Callable[..., Process]


@pytest.fixture
def start(taskq: Taskq, tmp_path: Path) -> Iterator[Start]:
    """Starts `taskq` with these arguments and environment in a process of its own, which ends with the test."""
    started: list[Process] = []

    def start(*arguments: str, **environ: str) -> Process:
        started.append(Process(*arguments, cwd=tmp_path, environ=environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
