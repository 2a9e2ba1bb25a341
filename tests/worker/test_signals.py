"""Being told to stop, once or twice: what counts as a second time, and what as an echo of the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from taskq.worker.signals import SIGNAL_ECHO_S, Ear, catching_signals, stop_signals
from tests.processes import wait_until
from tests.signals import handled


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """Whoever runs the tests may ignore its end."""
    with handled(signal.SIGHUP, signal.SIG_DFL):
        yield


def wait_out_the_echo() -> None:
    heard_at = time.monotonic()
    wait_until(lambda: time.monotonic() > heard_at + 1.5 * SIGNAL_ECHO_S, "the next signal is no echo")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_and_another_one_does_again(number: signal.Signals):
    stops: list[float] = []
    with catching_signals(lambda: stops.append(time.monotonic())):
        os.kill(os.getpid(), number)
        assert len(stops) == 1
        os.kill(os.getpid(), number)
        assert len(stops) == 1, "an echo"
        wait_out_the_echo()
        os.kill(os.getpid(), number)
        assert len(stops) == 2


def test_a_signal_in_the_middle_of_the_first_is_an_echo():
    stops: list[float] = []

    def stop() -> None:
        stops.append(time.monotonic())
        if len(stops) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with catching_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(stops) == 1


def test_a_signal_before_the_first_has_told_the_time_is_the_first(monkeypatch: pytest.MonkeyPatch):
    stops: list[int] = []
    ear = Ear(lambda: stops.append(1))
    times = iter([10.0, 10.0001])

    def now() -> float:
        time_s = next(times)
        if time_s == 10.0:  # and before this one is told it, the other comes
            ear.hear()
        return time_s

    monkeypatch.setattr("taskq.worker.signals.time.monotonic", now)
    ear.hear()
    assert stops == [1]


def test_who_ignores_the_end_of_the_terminal_goes_on_to():
    code = "from taskq.worker.signals import *; print(signal.SIGHUP in stop_signals())"
    with handled(signal.SIGHUP, signal.SIG_IGN):
        assert signal.SIGHUP not in stop_signals()
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert started.stdout == "False\n"
    assert signal.SIGHUP in stop_signals()
