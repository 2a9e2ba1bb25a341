"""`--log-level` and `--log-format`: what a worker's stderr looks like."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.logs import JsonLines
from tests.cli.conftest import Taskq
from tests.cli.processes import Process

APP = """
from taskq import task, current

@task(name="note", topic="numbers", group="sums")
def note(number: int) -> None:
    current.logger.info("at %d\\nof many", number)
"""


@pytest.fixture
def started(taskq: Taskq, tmp_path: Path) -> Iterator[list[Process]]:
    (tmp_path / "noting.py").write_text(APP)
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\napp = 'noting'\npartitions = 1\n")
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def test_json_lines_carry_all_that_is_known(started: list[Process], tmp_path: Path):
    worker = Process(
        *("worker", "-g", "sums", "--no-metrics", "--log-format", "json"),
        cwd=tmp_path,
        environ={"TASKQ_LOG_LEVEL": "debug"},
    )
    started.append(worker)
    worker.wait_for("holds numbers/0")
    sender = Process("send", "note", "--args", "[7]", cwd=tmp_path, environ={})
    started.append(sender)
    assert sender.end() == 0, sender.said
    worker.wait_for("taskq_seconds")
    assert worker.end(signal.SIGTERM) == 0, worker.said
    lines = [json.loads(line) for line in worker.said.splitlines()]
    assert all({"time", "process", "level", "logger", "message"} <= line.keys() for line in lines)
    [done] = [line for line in lines if line.get("taskq_outcome") == "done"]
    [noted] = [line for line in lines if line["logger"] == "note"]
    assert (done["level"], done["taskq_task"], done["taskq_attempt"]) == ("debug", "note", 1)
    assert (noted["level"], noted["taskq_id"]) == ("info", done["taskq_id"])
    assert noted["message"].endswith("at 7\nof many")
    assert "group sums" in "".join(line["message"] for line in lines if line["logger"] == "taskq.cli")


def test_a_level_leaves_out_what_is_below(started: list[Process], tmp_path: Path):
    worker = Process("worker", "-g", "sums", "--no-metrics", "--log-level", "error", cwd=tmp_path, environ={})
    started.append(worker)
    worker.wait_for("metrics +not served")
    assert worker.end(signal.SIGTERM) == 0, worker.said
    assert "INFO" not in worker.said


@pytest.mark.parametrize("option", ["--log-level=loud", "--log-format=xml"])
def test_what_there_is_not_is_exit_code_2(started: list[Process], tmp_path: Path, option: str):
    worker = Process("worker", "-g", "sums", "--no-metrics", option, cwd=tmp_path, environ={})
    started.append(worker)
    assert worker.end() == 2, worker.said


def test_a_json_line_takes_anything():
    try:
        raise ValueError("no\n\udc80")
    except ValueError:
        record = logging.makeLogRecord({"msg": "a %s", "args": ("ü",), "exc_info": sys.exc_info(), "odd": {1, 2}})
    line = JsonLines().format(record)
    assert "\n" not in line
    assert line.isascii()
    said = json.loads(line)
    assert said["message"] == "a ü"
    assert said["odd"] == "{1, 2}"
    assert "ValueError" in said["traceback"]
