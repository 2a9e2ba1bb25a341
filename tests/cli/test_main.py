"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from taskq.cli import COMMANDS, run
from taskq.cli import taskq as root
from tests.cli.conftest import Taskq


def commands() -> list[tuple[str, click.Command]]:
    """Every command there is, with its full name."""
    found: list[tuple[str, click.Command]] = []
    ctx = click.Context(root)
    for name in root.list_commands(ctx):
        command = root.get_command(ctx, name)
        assert command
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", one) for sub, one in command.commands.items()]
        else:
            found.append((name, command))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_help(name: str):
    command = root.get_command(click.Context(root), name)
    assert command
    assert command.name == name
    assert (command.help or "").partition("\n")[0] == COMMANDS[name]


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_takes_a_broker_and_names_its_variable(name: str, command: click.Command, taskq: Taskq):
    said = taskq(*name.split(), "--help")
    assert said.code == 0
    assert "--broker URL" in said.out
    assert "TASKQ_BROKER" in said.out


def test_help_lists_all_commands(taskq: Taskq):
    said = taskq("--help")
    assert said.code == 0
    for name, summary in COMMANDS.items():
        assert name in said.out
        assert summary in said.out


def test_an_unknown_command_is_a_usage_error_that_names_near_ones(taskq: Taskq):
    said = taskq("wroker")
    assert said.code == 2
    assert "did you mean worker?" in said.err


def test_an_unknown_subcommand_names_near_ones(taskq: Taskq):
    said = taskq("topics", "descirbe")
    assert said.code == 2
    assert "did you mean describe?" in said.err


def test_an_unknown_option_is_a_usage_error(taskq: Taskq):
    assert taskq("topics", "list", "--jsn").code == 2


def test_a_broker_url_that_makes_no_sense_is_exit_code_2_without_a_traceback(taskq: Taskq):
    said = taskq("topics", "list", "--broker", "amqp://localhost")
    assert said.code == 2
    assert said.err.startswith("taskq: error: ")
    assert "Traceback" not in said.err


def test_a_setting_that_makes_no_sense_names_its_file(taskq: Taskq, tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\nbrokr = 'x'\n")
    said = taskq("topics", "list")
    assert said.code == 2
    assert str(tmp_path / "pyproject.toml") in said.err
    assert "broker" in said.err


def test_a_broker_that_is_a_file_is_exit_code_1(taskq: Taskq, tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    said = taskq("topics", "list", "--broker", "file")
    assert said.code == 1
    assert said.err.startswith("taskq: error: ")


def test_what_nobody_expected_shows_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fails(broker: str | None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("taskq.cli.brokers.settings_of", fails)
    with pytest.raises(ZeroDivisionError):
        run(["topics", "list"])


def test_python_m_taskq_is_the_same_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "taskq", "topics", "list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path):
    script = f"{sys.executable} -m taskq topics list --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr


def test_help_imports_no_command():
    script = "import sys; from taskq.cli import run; run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert "taskq.cli" in loaded
    for name in ("taskq.worker", "taskq.broker.embedded", "taskq.cli.worker", "anyio", "prometheus_client"):
        assert f"'{name}'" not in loaded


def test_the_version_is_that_of_the_package(taskq: Taskq):
    assert taskq("--version").out.startswith("taskq 0.")
