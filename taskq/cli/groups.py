"""`taskq groups`: who works, and how far they are."""

from __future__ import annotations

import time
from typing import Any

import click

from taskq.cli import options
from taskq.cli.output import show_json, show_table


@click.group(name="groups", cls=options.HintingGroup, help="List and describe groups.")
def command() -> None:
    """`taskq groups`."""


@command.command(name="list")
@options.all_names
@options.broker
@options.as_json
def list_groups(show_all: bool, broker: str | None, as_json: bool) -> None:
    """List the groups that have ever run, with their backlog."""
    from taskq.cli.brokers import opened
    from taskq.exporter import is_internal, partition_backlogs, topics_of
    from taskq.worker.deadoffice import RESOLVED

    with opened(broker) as found:
        admin, reader = found.admin(), found.reader()
        rows: list[dict[str, Any]] = []
        for name in admin.groups():
            # Nobody works for RESOLVED: `taskq dead` shows what it is about.
            if name == RESOLVED or (is_internal(name) and not show_all):
                continue
            group = admin.describe_group(name)
            topics = sorted(topics_of(group))
            backlog = sum(part.backlog for part in partition_backlogs(admin, reader, group, topics))
            rows.append({"group": name, "members": len(group.members), "topics": topics, "backlog": backlog})
    if as_json:
        show_json(rows)
    else:
        show_table(["group", "members", "backlog", "topics"], rows)


@command.command(name="describe")
@click.argument("group")
@options.app
@options.broker
@options.as_json
def describe_group(group: str, app: str | None, broker: str | None, as_json: bool) -> None:
    """Show the members of GROUP, and its progress in each partition.

    With an app, also what waits for a group of it that has never run.
    """
    from taskq.cli.brokers import known_group, opened
    from taskq.exporter import describe_group, partition_backlogs, topics_of

    waiting = _topics_of_app(app, group)
    with opened(broker) as found:
        admin = found.admin()
        description = describe_group(admin, group if waiting else known_group(admin, group))
        parts = partition_backlogs(admin, found.reader(), description, topics_of(description) | waiting)
    now = time.time()
    rows = [
        {
            "topic": part.tp.topic,
            "partition": part.tp.partition,
            "committed": part.committed,
            "finished_above": part.finished_above,
            "end": part.bounds.end,
            "backlog": part.backlog,
            "age_seconds": part.age_seconds(now),
            "member": part.owner,
        }
        for part in parts
    ]
    if as_json:
        members = [{"member": name, "topics": list(topics)} for name, topics in sorted(description.members.items())]
        show_json({"group": group, "members": members, "partitions": rows})
        return
    members_now = len(description.members)
    click.echo(f"{group}: {members_now} {'member' if members_now == 1 else 'members'}\n")
    show_table(list(rows[0]) if rows else ["topic", "partition"], rows)


def _topics_of_app(app: str | None, group: str) -> set[str]:
    """The topics that `group` reads according to the app, if one is named and has such a group."""
    from taskq.cli.discovery import find_app
    from taskq.config import load_settings

    settings = load_settings(app=app)
    if settings.app is None:
        return set()
    found = find_app(settings)
    return set(found.topics(group)) if group in found.groups() else set()
