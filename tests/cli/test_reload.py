"""`taskq worker --reload`: edits while it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Taskq
from tests.cli.processes import Process

TASKS = """
from pathlib import Path
from taskq import task
import prices

@task(name="tell", topic="words", group="words")
def tell() -> None:
    print("says {word}", prices.PRICE, flush=True)

@task(name="wait", topic="words", group="words")
def wait(fifo: str) -> None:
    print("waiting", flush=True)
    Path(fifo).read_text()
"""

Edit = Callable[..., None]
Start = Callable[..., Process]


def write(file: Path, text: str) -> None:
    """As an editor: the file is there, whole, all the time."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.fixture
def project(taskq: Taskq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; what it imports from elsewhere is in `lib` beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "pyproject.toml").write_text("[tool.taskq]\napp = 'words'\npartitions = 1\n")
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib" / "prices.py", "PRICE = 1\n")
    write(folder / "words.py", TASKS.format(word="one"))
    return folder


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        environ = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{project.parent / 'lib'}"}
        environ["PYTHONDONTWRITEBYTECODE"] = "1"  # edits may be within the second in which bytecode was made
        started.append(Process(*arguments, cwd=project, environ=environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def send(start: Start, *arguments: str) -> None:
    process = start("send", *arguments)
    assert process.end() == 0, process.said


def worker_in(start: Start, *arguments: str) -> Process:
    return start("worker", "-g", "words", "--reload", "--metrics-port", "0", *arguments)


def test_an_edit_is_run_and_one_that_is_wrong_waits_for_the_next(start: Start, project: Path):
    worker = worker_in(start)
    worker.wait_for("holds words/0")
    send(start, "tell")
    worker.wait_for("says one 1")
    write(project / "words.py", TASKS.format(word="two"))
    worker.wait_for(r"words\.py changed: starting again")
    worker.wait_for("holds words/0", times=2)
    send(start, "tell")
    worker.wait_for("says two 1")

    write(project / "words.py", "def broken(:\n")
    worker.wait_for("SyntaxError")
    worker.wait_for("the next starts when a file has changed")
    write(project / "words.py", TASKS.format(word="three"))
    worker.wait_for("holds words/0", times=3)
    send(start, "tell")
    worker.wait_for("says three 1")
    assert worker.end(signal.SIGTERM) == 0, worker.said


def test_what_was_imported_from_elsewhere_is_watched_too(start: Start, project: Path):
    worker = worker_in(start)
    worker.wait_for("holds words/0")
    worker.wait_for(rf"watching .*{project.parent / 'lib'}")
    write(project.parent / "lib" / "prices.py", "PRICE = 2\n")
    worker.wait_for(r"lib/prices\.py changed: starting again")
    worker.wait_for("holds words/0", times=2)
    send(start, "tell")
    worker.wait_for("says one 2")
    assert worker.end(signal.SIGTERM) == 0, worker.said


def test_what_could_not_be_imported_from_elsewhere_is_watched_until_it_is_mended(start: Start, project: Path):
    write(project.parent / "lib" / "prices.py", "PRICE = (\n")
    worker = worker_in(start)
    worker.wait_for("the next starts when a file has changed")
    worker.wait_for(rf"watching .*{project.parent / 'lib'}")
    write(project.parent / "lib" / "prices.py", "PRICE = 2\n")
    worker.wait_for("holds words/0")
    assert worker.end(signal.SIGTERM) == 0, worker.said


def test_what_runs_has_three_seconds_and_then_runs_again(start: Start, project: Path, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = worker_in(start, "-p", "2")
    worker.wait_for("holds words/0")
    send(start, "wait", "--args", f'["{fifo}"]')
    worker.wait_for("waiting")
    write(project / "words.py", TASKS.format(word="two"))
    worker.wait_for("waiting", times=2)
    worker.wait_for(r"ended with exit code 1; the next starts now")
    assert "died holding it" not in worker.said
    fifo.write_text("go on")
    assert worker.end(signal.SIGTERM) == 0, worker.said
