"""Options that several commands share.

None of them has a default or reads the environment itself: what is not given is None, and `taskq.config.load_settings`
decides, for the command line as for a web app.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from taskq.config import LOG_FORMATS, LOG_LEVELS, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]


def setting(*names: str, of: str, help: str, **attributes: Any) -> Option[Any]:  # noqa: A002 - click's own name for it
    """An option for the setting `of`; its help names the variable that says the same."""
    return click.option(*names, help=f"{help}  [env var: TASKQ_{of.upper()}]", **attributes)


class HintingGroup(click.Group):
    """A command with subcommands that says which one was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if not args[0].startswith("-") and args[0] not in known:
            raise click.UsageError(f"No such command {args[0]!r}{did_you_mean(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)


broker = setting(
    "--broker",
    of="broker",
    metavar="URL",
    help="Where the log is: a directory or file:///directory. Default: .taskq beside the nearest pyproject.toml.",
)
app = setting("-A", "--app", of="app", metavar="MODULE[:APP]", help="The module that defines the tasks.")
log_level = setting(
    "--log-level", of="log_level", type=click.Choice(LOG_LEVELS), help="Of what is logged; debug: every invocation."
)
log_format = setting(
    "--log-format", of="log_format", type=click.Choice(LOG_FORMATS), help="Lines of text, or JSON objects."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
all_names = click.option("--all", "show_all", is_flag=True, help="Show taskq's own too: names that begin with __taskq.")
metrics_host = setting("--metrics-host", of="metrics_host", metavar="HOST", help="Address to serve metrics on.")
