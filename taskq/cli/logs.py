"""Where the log messages of a long-running command go, and what they look like."""

from __future__ import annotations

import logging

import click

from taskq.logs import JsonLines

_log = logging.getLogger("taskq.cli")


def say(text: str) -> None:
    """Tell a person who is at work: on stderr as it is, or as a log message where all lines are to be JSON."""
    if any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        _log.info(text)
    else:
        click.echo(text, err=True)
