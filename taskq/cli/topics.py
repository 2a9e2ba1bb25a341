"""`taskq topics`: what is stored."""

from __future__ import annotations

from typing import Any

import click

from taskq.cli import options
from taskq.cli.output import show_json, show_table


@click.group(name="topics", cls=options.HintingGroup, help="List, create and describe topics.")
def command() -> None:
    """`taskq topics`."""


@command.command(name="list")
@options.broker
@options.as_json
def list_topics(broker: str | None, as_json: bool) -> None:
    """List all topics with their size."""
    from taskq.cli.brokers import opened

    with opened(broker) as found:
        admin = found.admin()
        rows: list[dict[str, Any]] = []
        for name in admin.topics():
            topic = admin.describe_topic(name)
            rows.append(
                {
                    "topic": name,
                    "partitions": len(topic.partitions),
                    "records": sum(bounds.end - bounds.start for bounds in topic.partitions),
                    "bytes": sum(topic.size_bytes),
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
@options.broker
def create_topic(topic: str, partitions: int | None, broker: str | None) -> None:
    """Create TOPIC. Topics are created on first use too; this is for another number of partitions."""
    from taskq.cli.brokers import opened, settings_of
    from taskq.config import check_topic

    check_topic(topic)
    settings = settings_of(broker)
    count = partitions or settings.topics.get(topic, settings.partitions)
    with opened(broker) as found:
        found.admin().create_topic(topic, count)
    click.echo(f"{topic}: {count} partitions")


@command.command(name="describe")
@click.argument("topic")
@options.broker
@options.as_json
def describe_topic(topic: str, broker: str | None, as_json: bool) -> None:
    """Show the partitions of TOPIC."""
    from taskq.cli.brokers import known_topic, opened

    with opened(broker) as found:
        admin = found.admin()
        description = admin.describe_topic(known_topic(admin, topic))
    rows = [
        {
            "partition": number,
            "start": bounds.start,
            "end": bounds.end,
            "records": bounds.end - bounds.start,
            "bytes": size,
        }
        for number, (bounds, size) in enumerate(zip(description.partitions, description.size_bytes, strict=True))
    ]
    if as_json:
        show_json({"topic": topic, "partitions": rows})
    else:
        show_table(["partition", "start", "end", "records", "bytes"], rows)
