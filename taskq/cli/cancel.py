"""`taskq cancel`: have invocations not run, or not run on."""

from __future__ import annotations

import click

from taskq.cli import options
from taskq.cli.output import show_json


@click.command(name="cancel")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options.broker
@options.as_json
def command(ids: tuple[str, ...], broker: str | None, as_json: bool) -> None:
    """Have invocations not run, or not run on.

    What waits, or is delayed, never starts. What runs of an async task, or in a process, is stopped; a thread is told.
    What has ended stays as it is. Workers remember it for 30 days.
    """
    from taskq.cli.brokers import opened
    from taskq.control import cancellation
    from taskq.message import parse_id
    from taskq.topics import CONTROL

    told = [cancellation(parse_id(ident)) for ident in ids]
    with opened(broker) as found:
        found.producer().send_many(CONTROL, told)
    if as_json:
        show_json([{"id": ident, "cancelled": True} for ident in ids])
    else:
        click.echo("\n".join(ids))
