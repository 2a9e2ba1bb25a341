"""`taskq topics`: what is stored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from taskq.cli import options
from taskq.cli.output import show_json, show_table

if TYPE_CHECKING:
    from taskq.broker.port import Broker

_SETTINGS_HELP = (
    "Set how the topic is kept, such as retention_ms=7d or segment_bytes=64MiB. May be given many times. "
    "`taskq topics describe` shows all there are."
)
_set = click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help=_SETTINGS_HELP)


@click.group(name="topics", cls=options.HintingGroup, help="List, create, describe, alter and delete topics.")
def command() -> None:
    """`taskq topics`."""


@command.command(name="list")
@options.all_names
@options.broker
@options.as_json
def list_topics(show_all: bool, broker: str | None, as_json: bool) -> None:
    """List all topics with their size."""
    from taskq.cli.brokers import opened
    from taskq.exporter import is_internal

    with opened(broker) as found:
        admin = found.admin()
        rows: list[dict[str, Any]] = []
        for name in admin.topics():
            if is_internal(name) and not show_all:
                continue
            topic = admin.describe_topic(name)
            rows.append(
                {
                    "topic": name,
                    "partitions": len(topic.partitions),
                    "records": sum(bounds.end - bounds.start for bounds in topic.partitions),
                    "bytes": sum(topic.size_bytes) if topic.size_bytes else None,
                }
            )
    if as_json:
        show_json(rows)
    else:
        show_table(["topic", "partitions", "records", "bytes"], rows)


@command.command(name="create")
@click.argument("topic")
@options.setting(
    "--partitions", of="partitions", type=click.IntRange(1), metavar="N", help="How many. Can't be reduced later."
)
@click.option("--replication", "copies", type=click.IntRange(1), metavar="N", help="How many brokers keep it (Kafka).")
@_set
@options.broker
def create_topic(
    topic: str, partitions: int | None, copies: int | None, given: Sequence[str], broker: str | None
) -> None:
    """Create TOPIC. Topics are created on first use too; this is for another number of partitions, or settings."""
    from taskq.cli.brokers import opened, settings_of
    from taskq.config import check_new_topic
    from taskq.topics import TopicConfig

    check_new_topic(topic)
    configured = settings_of(broker).topics.get(topic, TopicConfig())
    count = partitions or configured.partitions or settings_of(broker).partitions
    with opened(broker) as found:
        found.admin().create_topic(
            topic,
            count,
            replication=copies or configured.replication,
            **{**configured.settings, **_parse(topic, given)},
        )
    click.echo(f"{topic}: {count} partitions")


@command.command(name="alter")
@click.argument("topic")
@click.option("--partitions", type=click.IntRange(1), metavar="N", help="How many from now on. Never fewer.")
@_set
@options.broker
def alter_topic(topic: str, partitions: int | None, given: Sequence[str], broker: str | None) -> None:
    """Give TOPIC more partitions, or other settings, while it is being used.

    What is published with a key may be in another partition from then on than what came before it.
    """
    from taskq.cli.brokers import known_topic, opened

    if partitions is None and not given:
        raise click.UsageError("Nothing to alter: give --partitions or --set KEY=VALUE.")
    with opened(broker) as found:
        admin = found.admin()
        admin.alter_topic(known_topic(admin, topic), partitions, **_parse(topic, given))
        count = admin.partitions(topic)
    click.echo(f"{topic}: {count} partitions{''.join(f', {one}' for one in given)}")


@command.command(name="delete")
@click.argument("topic")
@click.option("--yes", is_flag=True, help="Don't ask.")
@options.broker
def delete_topic(topic: str, yes: bool, broker: str | None) -> None:
    """Delete TOPIC with all that is in it, and the progress groups made in it."""
    from taskq.cli.brokers import known_topic, opened

    with opened(broker) as found:
        what = _what_goes(found, known_topic(found.admin(), topic))
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"Deleting {what}. Say --yes if that is meant.")
            click.confirm(f"Delete {what}?", abort=True)
        found.admin().delete_topic(topic)
    click.echo(f"deleted {what}")


def _what_goes(broker: Broker, topic: str) -> str:
    """The topic, its records, and which groups have not finished them."""
    from taskq.exporter import partition_backlogs

    admin, reader = broker.admin(), broker.reader()
    records = sum(bounds.end - bounds.start for bounds in admin.describe_topic(topic).partitions)
    backlogs: list[str] = []
    for name in admin.groups():
        group = admin.describe_group(name)
        if any(tp.topic == topic for tp in group.committed) or any(
            topic in topics for topics in group.members.values()
        ):
            unfinished = sum(part.backlog for part in partition_backlogs(admin, reader, group, [topic]))
            backlogs.append(f"group {name} has not finished {unfinished} of them")
    said = "; ".join(backlogs) if backlogs else "no group has worked on it"
    return f"topic {topic} with {records} {'record' if records == 1 else 'records'} ({said})"


@command.command(name="describe")
@click.argument("topic")
@options.broker
@options.as_json
def describe_topic(topic: str, broker: str | None, as_json: bool) -> None:
    """Show the settings and the partitions of TOPIC."""
    from taskq.cli.brokers import known_topic, opened
    from taskq.topics import show_settings

    with opened(broker) as found:
        admin = found.admin()
        description = admin.describe_topic(known_topic(admin, topic))
    sizes: Sequence[int | None] = description.size_bytes or [None] * len(description.partitions)
    rows = [
        {
            "partition": number,
            "start": bounds.start,
            "end": bounds.end,
            "records": bounds.end - bounds.start,
            "bytes": size,
        }
        for number, (bounds, size) in enumerate(zip(description.partitions, sizes, strict=True))
    ]
    settings = show_settings(description.settings)
    if as_json:
        show_json({"topic": topic, "settings": settings, "partitions": rows})
    else:
        show_table(["setting", "value"], [{"setting": name, "value": value} for name, value in settings.items()])
        click.echo()
        show_table(["partition", "start", "end", "records", "bytes"], rows)


def _parse(topic: str, given: Sequence[str]) -> dict[str, int | str]:
    from taskq.topics import check_said, parse_settings

    for one in given:
        if "=" not in one:
            raise click.BadParameter(f"{one!r} is not KEY=VALUE.", param_hint="--set")
    settings = parse_settings({key.strip(): value.strip() for key, _, value in (one.partition("=") for one in given)})
    check_said(topic, settings)
    return settings
