"""`taskq send`: one invocation, by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from taskq.cli import options
from taskq.cli.output import show_json
from taskq.config import did_you_mean, load_settings
from taskq.errors import ArgumentsError, ConfigError, TaskNotFound

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
    chosen = {name: value for name, value in {"key": key, "topic": topic, "id": ident}.items() if value is not None}
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


def _publish(app: TaskQ, name: str, args: list[Any], kwargs: dict[str, Any], chosen: dict[str, str]) -> Handle[Any]:
    event = app.events.get(name)
    if event is not None:
        if args or chosen:
            raise ArgumentsError(f"{name!r} is an event: it takes --kwargs only")
        return event.publish(**kwargs)
    task = app.tasks.get(name)
    if task is None:
        known = [*app.tasks, *app.events]
        raise TaskNotFound(f"there is no task {name!r}{did_you_mean(name, known) or '; the app has none'}")
    return task.options(**chosen).delay(*args, **kwargs)  # type: ignore[arg-type]
