"""The supervisor with real processes and real signals; the workers are fake, their link is not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import wait_until
from tests.worker.test_signals import wait_out_the_echo

RUN = Path(__file__).with_name("run_supervisor.py")
SECONDS_MAX = 30.0


class Running:
    """A supervisor process, what its workers say, and its page."""

    def __init__(self, process: subprocess.Popen[str], log: int) -> None:
        assert process.stdout
        self.process = process
        self._log = log
        self._heard = ""
        self.url = process.stdout.readline().strip().removesuffix("/metrics")

    def heard(self, what: str, times: int = 1) -> list[int]:
        """Wait until workers have said `what` so often; return the pids of those that did, in order."""
        while True:
            pids = [int(line.split()[0]) for line in self._heard.splitlines() if line.split()[1] == what]
            if len(pids) >= times:
                return pids
            readable, _, _ = select.select([self._log], [], [], SECONDS_MAX)
            assert readable, f"{what!r} was said {len(pids)} times, not {times}"
            self._heard += os.read(self._log, 65536).decode()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=SECONDS_MAX) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """Its value on the page, all series added."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def change(self, what: str) -> str:
        """Have it start its workers again; return which sources they have."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def ends(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it logged."""
        _, logged = self.process.communicate(timeout=SECONDS_MAX)
        return self.process.returncode, logged


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    log = os.open(fifo, os.O_RDWR)

    def supervise(processes: int, *behaviour: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, RUN, str(processes), *behaviour],
            env={**os.environ, "FAKE_LOG": str(fifo)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Running(process, log))
        return started[-1]

    yield supervise
    for running in started:
        with running.process as process:
            process.kill()
    os.close(log)


Supervise = Callable[..., Running]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_exit_code_is_0(supervise: Supervise, number: signal.Signals):
    running = supervise(2)
    workers = running.heard("started", 2)
    running.process.send_signal(number)
    assert sorted(running.heard("SIGTERM", 2)) == sorted(workers)
    assert running.ends()[0] == 0
    assert not any(map(alive, workers))


def test_a_killed_worker_is_replaced(supervise: Supervise):
    running = supervise(2)
    first = running.heard("started", 2)
    os.kill(first[0], signal.SIGKILL)
    workers = running.heard("started", 3)
    assert alive(first[1])
    assert workers[2] not in first
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert (
        f"(process {first[0]}) was killed by SIGKILL (by the system, if memory ran out); the next starts in" in logged
    )


@pytest.mark.skipif(sys.platform != "linux", reason="there are no real-time signals")
def test_one_that_was_killed_by_a_signal_without_a_name_is_replaced(supervise: Supervise):
    running = supervise(1)
    (first,) = running.heard("started")
    os.kill(first, 40)
    running.heard("started", 2)
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert "was killed by signal 40; the next starts in 0.1 s" in logged


def test_a_worker_that_cannot_start_is_tried_again_less_and_less_often(supervise: Supervise):
    running = supervise(1, "exit-1")
    running.heard("started", 4)
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    pauses = [line.split("the next starts in ")[1] for line in logged.splitlines() if "the next starts in" in line]
    assert pauses[:3] == ["0.1 s", "0.2 s", "0.4 s"]


def test_a_usage_error_stops_all_with_its_exit_code(supervise: Supervise):
    running = supervise(2, "exit-2")
    code, logged = running.ends()
    assert code == 2
    assert "ended with exit code 2: stopping" in logged


def test_the_second_signal_stops_even_stubborn_workers(supervise: Supervise):
    running = supervise(2, "stubborn")
    workers = running.heard("started", 2)
    running.process.terminate()
    running.heard("SIGTERM", 2)
    wait_out_the_echo()
    running.process.terminate()
    code, logged = running.ends()
    assert code == 1
    assert logged.count("did not stop; killing it") == 2
    assert not any(map(alive, workers))


def test_an_echo_of_the_first_signal_is_no_second_one(supervise: Supervise):
    running = supervise(2, "slow")
    running.heard("started", 2)
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    code, logged = running.ends()
    assert code == 0
    assert "draining 2 workers" in logged
    assert "stopping" not in logged
    assert "did not stop" not in logged


def test_workers_are_told_of_the_second_signal_by_more_than_a_signal(supervise: Supervise):
    """Which they may take for an echo."""
    running = supervise(2, "deaf")
    running.heard("started", 2)
    running.process.terminate()
    running.heard("SIGTERM", 2)
    wait_out_the_echo()
    running.process.terminate()
    code, logged = running.ends()
    running.heard("at-once", 2)
    assert code == 0
    assert "did not stop" not in logged


def test_a_worker_that_has_drained_by_itself_but_does_not_end_is_killed(supervise: Supervise):
    running = supervise(1, "stubborn", "impatient", "lingering")
    (first,) = running.heard("started")
    running.heard("started", 2)
    assert not alive(first)


def test_a_worker_that_does_not_drain_in_time_is_killed(supervise: Supervise):
    running = supervise(1, "stubborn", "impatient")
    running.heard("started")
    running.process.terminate()
    code, logged = running.ends()
    assert code == 1
    assert "did not stop; killing it" in logged


def test_when_the_supervisor_is_killed_its_workers_drain(supervise: Supervise):
    running = supervise(2)
    workers = running.heard("started", 2)
    running.process.kill()
    assert sorted(running.heard("orphaned", 2)) == sorted(workers)


def test_one_scrape_sees_all_workers(supervise: Supervise):
    running = supervise(3)
    running.heard("started", 3)
    assert running.metric("taskq_commits_total") == 300
    assert running.metric("taskq_backlog") == 7
    assert running.get("/healthz") == (200, "ok\n")
    assert running.get("/readyz") == (200, "ok\n")


def test_counts_do_not_fall_when_a_worker_dies(supervise: Supervise):
    running = supervise(2)
    workers = running.heard("started", 2)
    assert running.metric("taskq_commits_total") == 200
    os.kill(workers[0], signal.SIGKILL)
    running.heard("started", 3)
    assert running.metric("taskq_commits_total") == 300


def test_a_worker_that_ends_in_order_tells_its_last_counts(supervise: Supervise):
    running = supervise(1)
    (worker,) = running.heard("started")
    os.kill(worker, signal.SIGTERM)
    running.heard("started", 2)
    assert running.metric("taskq_commits_total") == 201


def test_a_last_report_is_heard_however_long_it_is(supervise: Supervise):
    running = supervise(1, "wordy")
    (worker,) = running.heard("started")
    assert running.metric("taskq_commits_total") == 100
    os.kill(worker, signal.SIGTERM)
    running.heard("started", 2)
    assert running.metric("taskq_commits_total") == 201


def test_a_worker_that_does_not_answer_delays_a_scrape_by_a_second_and_not_more(supervise: Supervise):
    running = supervise(2, "mute")
    running.heard("started", 2)
    assert running.get("/metrics") == (200, "")
    assert running.get("/readyz") == (503, "worker 0: it does not answer\nworker 1: it does not answer\n")


def test_a_worker_that_is_not_ready_says_why(supervise: Supervise):
    running = supervise(1, "not-ready")
    running.heard("started")
    assert running.get("/readyz") == (503, "worker 0: no partition is held\n")
    assert running.get("/healthz") == (200, "ok\n")


def test_workers_do_not_get_the_terminals_ctrl_c(supervise: Supervise):
    running = supervise(1)
    (worker,) = running.heard("started")
    assert os.getpgid(worker) == worker


def test_a_worker_that_wants_to_be_replaced_is_at_once_and_it_is_said_why(supervise: Supervise):
    running = supervise(1, "exit-75")
    running.heard("started", 8)
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert logged.count("ended with exit code 75, since it is full; the next starts now") >= 7
    assert "WARNING" not in logged


def test_a_worker_is_not_killed_while_it_may_drain_by_what_it_says_itself(supervise: Supervise):
    running = supervise(1, "slow", "impatient")
    running.heard("started")
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert "did not stop" not in logged


def test_a_change_drains_all_and_starts_them_again(supervise: Supervise):
    running = supervise(2, "awaits-change")
    first = running.heard("started", 2)
    assert running.change("shop.py changed") == "['/code/shop.py']"
    assert sorted(running.heard("SIGTERM", 2)) == sorted(first)
    second = running.heard("started", 4)[2:]
    assert not set(first) & set(second)
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert "shop.py changed: starting again" in logged


@pytest.mark.parametrize("behaviour", ["exit-1", "exit-2"])
def test_one_that_fails_waits_for_a_change(supervise: Supervise, behaviour: str):
    running = supervise(1, "awaits-change", behaviour)
    for times in (1, 2, 3):
        pids = running.heard("started", times)
        assert len(pids) == times
        wait_until(lambda: not any(map(alive, running.heard("started"))), "the supervisor knows of its end")
        assert running.change("again") == "[]"
    running.heard("started", 4)
    running.process.terminate()
    code, logged = running.ends()
    assert code == 0
    assert "the next starts when a file has changed" in logged


def test_of_one_that_failed_it_is_known_what_it_imported(supervise: Supervise):
    running = supervise(1, "awaits-change", "exit-1", "tells")
    (first,) = running.heard("started")
    wait_until(lambda: not alive(first), "the supervisor knows of its end")
    assert running.change("again") == "['/code/broken.py']"
    running.heard("started", 2)


def test_one_that_does_not_drain_for_a_change_is_stopped(supervise: Supervise):
    running = supervise(1, "awaits-change", "stubborn")
    first = running.heard("started")[0]
    running.change("again")
    assert running.heard("SIGTERM", 2) == [first, first]
    running.heard("started", 2)
    assert not alive(first)
