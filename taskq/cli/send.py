"""`taskq send`: one invocation, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from taskq.cli import options
from taskq.cli.output import show_json
from taskq.config import did_you_mean, load_settings
from taskq.errors import ArgumentsError, ConfigError, TaskNotFound
from taskq.options import PRIORITIES

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.results import Handle


@click.command(name="send")
@click.argument("task")
@click.option(
    "--args", "arguments", metavar="JSON", default="[]", help="Positional arguments: an array, as '[1, \"a\"]'."
)
@click.option(
    "--kwargs", "keywords", metavar="JSON", default="{}", help="Arguments by name: an object, as '{\"n\": 1}'."
)
@click.option("--key", metavar="TEXT", help="The record's key, instead of the task's own.")
@click.option("--topic", metavar="TOPIC", help="Another topic than the task's own.")
@click.option("--id", "ident", metavar="ID", help="The invocation's id, instead of a new one.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="May be given many times.")
@click.option("--delay", type=float, metavar="SECONDS", help="Run it so much later.")
@click.option("--at", metavar="TIME", help="Run it then: ISO 8601 with its offset, as 2026-11-22T10:00:00+01:00.")
@click.option("--expires", type=float, metavar="SECONDS", help="Don't start it any more after so long.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Another priority than the task's own.")
@options.app
@options.broker
@options.as_json
def command(
    task: str,
    arguments: str,
    keywords: str,
    key: str | None,
    topic: str | None,
    ident: str | None,
    headers: Sequence[str],
    delay: float | None,
    at: str | None,
    expires: float | None,
    priority: str | None,
    app: str | None,
    broker: str | None,
    as_json: bool,
) -> None:
    """Publish one invocation.

    TASK is the name of a task, or of an event. The arguments are checked before anything is published; the id of
    the invocation is printed.
    """
    from taskq.cli.discovery import find_app

    args = _parse("--args", arguments, list, "an array")
    kwargs = _parse("--kwargs", keywords, dict, "an object")
    chosen = {
        "key": key,
        "topic": topic,
        "id": ident,
        "headers": _headers(headers) if headers else None,
        "delay": delay,
        "at": _moment(at) if at is not None else None,
        "expires": expires,
        "priority": priority,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    found = find_app(load_settings(app=app, broker=broker), broker=broker)
    try:
        handle = _publish(found, task, args, kwargs, chosen)
    finally:
        found.close()
    if as_json:
        show_json({"id": handle.id, "task": task})
    else:
        click.echo(handle.id)


def _parse(option: str, text: str, kind: type[Any], what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{option} is not {what}: {text}")
    return value


def _headers(given: Sequence[str]) -> dict[str, str]:
    for one in given:
        if "=" not in one:
            raise click.BadParameter(f"{one!r} is not NAME=VALUE.", param_hint="--header")
    return {name: value for name, _, value in (one.partition("=") for one in given)}


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not like 2026-11-22T10:00:00+01:00.", param_hint="--at") from None
    if moment.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no offset: add Z, or +01:00.", param_hint="--at")
    return moment


def _publish(app: TaskQ, name: str, args: list[Any], kwargs: dict[str, Any], chosen: dict[str, Any]) -> Handle[Any]:
    event = app.events.get(name)
    if event is not None:
        if args or chosen:
            raise ArgumentsError(f"{name!r} is an event: it takes --kwargs only, and no option of a call")
        return event.publish(**kwargs)
    task = app.tasks.get(name)
    if task is None:
        known = [*app.tasks, *app.events]
        raise TaskNotFound(f"there is no task {name!r}{did_you_mean(name, known) or '; the app has none'}")
    return task.options(**chosen).delay(*args, **kwargs)
