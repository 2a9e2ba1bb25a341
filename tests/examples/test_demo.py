"""The demo as a newcomer starts it: one command, its numbers, its exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest

from tests.signals import handled

ROOT = Path(__file__).parents[2]
EDGES = "id_1,id_2\n" + "".join(f"7,{other}\n" for other in range(100, 400))


@contextmanager
def demo(folder: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """The demo as a child process, whose temporary files go to `folder`. It ends with this, at the latest."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.sns_feed.demo", *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # which ends what it started, too


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def interruptible() -> Generator[None]:
    """Whoever runs the tests in the background of a shell ignores SIGINT, and so would a child."""
    with handled(signal.SIGINT, signal.default_int_handler):
        yield


@pytest.fixture
def edges(tmp_path: Path) -> Path:
    path = tmp_path / "follows.csv"
    path.write_text(EDGES)
    return path


def test_once_it_shows_both_times_the_drain_and_exact_feeds_and_leaves_nothing(tmp_path: Path, edges: Path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    with demo(folder, "--once", "--follows", str(edges), "--port", "0") as process:
        output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output
    assert "301 people, 600 follows" in output
    assert "Developer 7 posts twice to 300 followers" in output
    assert "times sooner" in output
    assert "In 300 of 300 feeds, exactly once" in output
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_up_until_a_signal_and_then_leaves_no_process(tmp_path: Path, edges: Path, signum: signal.Signals):
    with demo(tmp_path, "--follows", str(edges), "--port", "0") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        told = "".join(takewhile(lambda line: "Up until Ctrl-C" not in line, lines))
        assert "/users/7   Developer 7" in told
        assert "/backlog" in told
        started = children(process.pid)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert len(started) == 3
    assert not [pid for pid in started if alive(pid)]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--follows", "nowhere.csv"], 1, "nowhere.csv: No such file"),
        (["--workers", "none"], 2, "--workers: invalid int value"),
    ],
)
def test_what_can_not_be_is_told(tmp_path: Path, arguments: list[str], code: int, told: str):
    with demo(tmp_path, "--once", *arguments) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert told in output
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_told(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(tmp_path, "--once", "--port", str(port)) as process:
            output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"demo: port {port}: Address already in use; --port 0 takes any free one" in output
