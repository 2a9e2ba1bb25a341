"""A share of the long runs of `make crash`, with a new seed each time. They fork, so each has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)  # on a quiet machine each takes a few seconds


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=115)
    assert not done.returncode, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_whoever_is_killed_nothing_acknowledged_is_lost_altered_doubled_or_reordered():
    assert " SIGKILLs " in run("tests.crash", "--kills", "60").splitlines()[-1]


def test_six_processes_append_to_one_partition_and_two_read_it():
    said = run("tests.crash.million", "--records", "30000")
    assert "no gaps in offsets" in said
