"""The end of a worker process: that it comes, whatever goes on."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.worker import ending
from taskq.worker.ending import Ending
from taskq.worker.signals import SIGNAL_ECHO_S
from tests.processes import WAIT_S, Bench, bench, wait_until

BROKER_HANGS = """
import sys, threading
from taskq.broker.consumer import EmbeddedConsumer

def hang(*_):
    print("hangs", flush=True)
    threading.Event().wait()

EmbeddedConsumer.poll = hang
from taskq.cli import main
main(sys.argv[1:])
"""


class Left:
    """Instead of ending the process, tells the code."""

    def __init__(self) -> None:
        self.codes: queue.Queue[int] = queue.Queue()
        self.said = 0
        self.ending = Ending(self.codes.put)

    def start(self) -> None:
        self.ending.start(lambda: 7, self.say)

    def say(self) -> None:
        self.said += 1


@pytest.fixture
def left() -> Left:
    return Left()


def test_the_process_ends_in_time_after_its_last_words(left: Left):
    left.start()
    left.ending.within(0.01)
    assert left.codes.get(timeout=WAIT_S) == 7
    assert left.said == 1


def test_what_is_said_last_counts(left: Left):
    left.ending.within(0.01)
    left.ending.within(1000)
    left.start()
    with pytest.raises(queue.Empty):
        left.codes.get(timeout=0.1)
    left.ending.within(0)
    assert left.codes.get(timeout=WAIT_S) == 7


def test_at_once_is_not_taken_back(left: Left, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "AT_ONCE_S_MAX", 0.01)
    left.start()
    left.ending.at_once()
    left.ending.within(1000)
    assert left.codes.get(timeout=WAIT_S) == 7


def test_last_words_that_do_not_end_are_not_waited_for(left: Left, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "WORDS_S_MAX", 0.01)
    gate = threading.Event()
    left.ending.start(lambda: 7, gate.wait)
    left.ending.within(0)
    assert left.codes.get(timeout=WAIT_S) == 7
    gate.set()


def test_where_nobody_has_started_it_nothing_is_ended(left: Left):
    left.ending.drained()
    left.ending.at_once()
    assert left.codes.empty()
    assert left.said == 0


# --- processes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TEST_AUDIT", str(tmp_path / "audit"))
    with bench(tmp_path, "tests.apps.lingering") as made:
        yield made


LEAVES = ["a_thread", "a_pool", "a_thread_of_the_loop", "a_thread_that_cant_be_cancelled"]


@pytest.mark.parametrize("task", LEAVES)
def test_a_drain_ends_whatever_tasks_have_left(here: Bench, task: str):
    worker = here.start_worker("feed", "--drain-timeout=0.5").wait_ready()
    here.task(task).delay()
    here.wait_for_lines(1)
    assert worker.stop() == 0
    wait_until(lambda: "ending without what does not end by itself" in worker.log, "it says so")


def test_a_second_signal_ends_at_once_whatever_tasks_have_left(here: Bench):
    worker = here.start_worker("feed", "--drain-timeout=1000").wait_ready()
    here.task("a_thread_that_cant_be_cancelled").delay()
    here.wait_for_lines(1)
    worker.process.terminate()
    worker.wait_for("draining")
    stop_again(worker.process)
    assert worker.process.wait(5) == 1


@pytest.mark.parametrize("task", LEAVES[:3])
def test_a_process_that_is_replaced_ends_whatever_tasks_have_left(here: Bench, task: str):
    supervisor = here.start_worker("feed", "--max-invocations=1").wait_ready()
    here.task(task).delay()
    supervisor.wait_for("ended with exit code 75, since it has run 1 invocations; the next starts now")
    assert supervisor.stop() == 0


@pytest.mark.parametrize(
    ("said", "arguments"), [("stopping", ["--only-delays"]), ("draining", ["-g", "feed", "-A", "tests.apps.lingering"])]
)
def test_a_second_signal_waits_for_no_broker(here: Bench, said: str, arguments: list[str]):
    command = [sys.executable, "-c", BROKER_HANGS, "worker", *arguments, "--no-metrics", f"--broker={here.broker}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == "hangs\n"
            process.terminate()
            next(line for line in process.stderr if said in line)  # else a busy machine makes an echo of the second
            stop_again(process)
            assert process.wait(5) == 1
        finally:
            process.kill()


def stop_again(process: subprocess.Popen[str]) -> None:
    stopped_at = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_at + 3 * SIGNAL_ECHO_S, "the next signal is no echo")
    process.send_signal(signal.SIGTERM)
