"""The `taskq` command: one module of this package for each subcommand, imported when it is asked for.

Exit codes: 0 done, 1 failed, 2 the command line or the configuration makes no sense.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from taskq.cli.options import HintingGroup
from taskq.errors import ConfigError, TaskqError

COMMANDS = {
    "worker": "Run the invocations of a group.",
    "send": "Publish one invocation.",
    "cancel": "Have invocations not run, or not run on.",
    "topics": "List, create, describe, alter and delete topics.",
    "groups": "List and describe groups.",
    "dead": "List, show, retry and purge dead letters.",
    "log": "Verify a log and look inside its files.",
    "exporter": "Serve backlog metrics without a worker.",
}
"""Name -> the first line of its help, here so that `taskq --help` imports none of them."""


class _Commands(HintingGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"taskq.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="taskq", prog_name="taskq", message="%(prog)s %(version)s")
def taskq() -> None:
    """Tasks on a partitioned, persistent log.

    Settings come from options, then TASKQ_* variables, then [tool.taskq] in the nearest pyproject.toml upwards.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code. What is not ours to explain propagates, with its traceback."""
    try:
        code = taskq.main(args=arguments, prog_name="taskq", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TaskqError as error:
        click.echo(f"taskq: error: {error}", err=True)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # `taskq topics list | head`: Python would complain once more when it closes stdout
        sys.stdout = None
        return 1
    return code if isinstance(code, int) else 0
