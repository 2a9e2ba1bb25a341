"""`taskq dead`: what groups gave up on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from taskq.cli import options
from taskq.cli.output import show_json, show_json_array

if TYPE_CHECKING:
    from taskq.broker.port import Broker
    from taskq.worker.deadoffice import Chosen, Filter, Told

_PROGRESS_MIN = 10_000
_AGO = re.compile(r"(\d{1,9})\s*([smhdw])", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_group = options.setting(
    "-g", "--group", of="default_group", metavar="GROUP", help="The group that gave up on them.",
)  # fmt: skip


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--task`, `--reason` and `--since`."""
    for option in (
        click.option(
            "--since", metavar="TIME", help="Given up since then: 2h, 30m, 7d ago, or a date or time (ISO 8601)."
        ),
        click.option("--reason", metavar="REASON", help="Given up for this reason, as `list` shows it."),
        click.option("--task", metavar="TASK", help="Only of this task."),
    ):
        command = option(command)
    return command


def _choosing(command: Callable[..., None]) -> Callable[..., None]:
    """IDs, `--all` and filters, which the command gets as what they choose."""

    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @click.option("--all", "every", is_flag=True, help="All of them, or all that the filters leave.")
    @_filters
    @wraps(command)
    def chosen(
        ids: Sequence[str], every: bool, task: str | None, reason: str | None, since: str | None, **others: Any
    ) -> None:
        command(_chosen(ids, every, (task, reason, since)), **others)

    return chosen


@click.group(name="dead", cls=options.HintingGroup)
def command() -> None:
    """List, show, retry and purge dead letters.

    A dead letter is an invocation that a group gave up on: it failed for good, or can't be run as it stands. It is
    kept until a person retries or purges it.
    """


@command.command(name="list")
@_group
@_filters
@options.broker
@options.as_json
def list_letters(
    group: str | None, task: str | None, reason: str | None, since: str | None, broker: str | None, as_json: bool
) -> None:
    """List the dead letters of a group, the oldest first."""
    from taskq.cli.letters import show_letters, summary
    from taskq.worker.deadoffice import list_dead

    chosen = _filter(task, reason, since)
    with _group_of(broker, group) as (found, name):
        letters = list_dead(found, name, chosen)
        if as_json:
            show_json_array(map(summary, letters))
        else:
            show_letters(letters)


@command.command(name="show")
@click.argument("ident", metavar="ID")
@_group
@options.broker
@options.as_json
def show_letter(ident: str, group: str | None, broker: str | None, as_json: bool) -> None:
    """Show everything about the dead letters with this ID: the error, its history, arguments, headers.

    An event may have several, one for each handler that failed. ID may also be a letter's place, as 3@17.
    """
    from taskq.cli.letters import everything, lines_of
    from taskq.errors import TaskqError
    from taskq.worker.deadoffice import list_dead

    with _group_of(broker, group) as (found, name):
        letters = (one for one in list_dead(found, name) if ident in (one.id, one.place))
        first = next(letters, None)
        if first is None:
            raise TaskqError(f"group {name} has no dead letter {ident}; `taskq dead list -g {name}` shows those it has")
        shown = [first, *letters]
        if as_json:
            show_json([everything(letter) for letter in shown])
        else:
            click.echo("\n\n".join("\n".join(lines_of(letter)) for letter in shown))


@command.command(name="retry")
@_choosing
@_group
@options.broker
@options.as_json
def retry_letters(chosen: Chosen, group: str | None, broker: str | None, as_json: bool) -> None:
    """Have the group run dead letters again: those with these IDs, or --all.

    They keep their ids, and have all their retries before them again. ID may also be a letter's place, as 3@17.
    """
    from taskq.worker.deadoffice import retry_dead

    _resolve("retried", retry_dead, chosen, group, broker, as_json=as_json)


@command.command(name="purge")
@_choosing
@_group
@options.broker
@options.as_json
def purge_letters(chosen: Chosen, group: str | None, broker: str | None, as_json: bool) -> None:
    """Let go of dead letters: those with these IDs, or --all. They will never run.

    ID may also be a letter's place, as 3@17.
    """
    from taskq.worker.deadoffice import purge_dead

    _resolve("purged", purge_dead, chosen, group, broker, as_json=as_json)


def _resolve(
    done: str, act: Callable[[Broker, str, Chosen, Told], int], chosen: Chosen, group: str | None, broker: str | None,
    *, as_json: bool,
) -> None:  # fmt: skip
    with _group_of(broker, group) as (found, name), _progress(found, name, done) as told:
        count = act(found, name, chosen, told)
    if as_json:
        show_json({"group": name, done: count})
    else:
        click.echo(_count(count, name, done))


def _count(count: int, group: str, done: str) -> str:
    return f"{count} dead {'letter' if count == 1 else 'letters'} of group {group} {done}"


@contextmanager
def _group_of(broker: str | None, group: str | None) -> Generator[tuple[Broker, str]]:
    """The broker, and the name of the group. TaskqError if the broker knows nothing of it."""
    from taskq.cli.brokers import opened, settings_of
    from taskq.config import check_group, did_you_mean
    from taskq.errors import TaskqError
    from taskq.topics import DEAD, INTERNAL, dead_topic

    name = check_group(group or settings_of(broker).default_group)
    with opened(broker) as found:
        admin = found.admin()
        topics, groups = admin.topics(), admin.groups()
        if dead_topic(name) not in topics and name not in groups:
            with_letters = {topic.removesuffix(DEAD) for topic in topics if topic.endswith(DEAD)}
            known = {one for one in with_letters.union(groups) if not one.startswith(INTERNAL)}
            raise TaskqError(f"no group {name!r} has ever run on this broker{did_you_mean(name, known)}")
        yield found, name


@contextmanager
def _progress(broker: Broker, group: str, done: str) -> Generator[Told]:
    """A bar on a terminal if there are many; and how many were done if it ends before all are.

    Ctrl-C and SIGTERM end it when the batch in hand is done, the second time at once.
    """
    from taskq.cli.interrupts import interrupts
    from taskq.worker.gauges import dead_letters

    count = 0
    total = dead_letters(broker.admin(), group) if sys.stderr.isatty() else 0
    bar = click.progressbar(length=total, label="dead letters", file=sys.stderr, hidden=total < _PROGRESS_MIN)

    def told(looked_at: int, resolved: int) -> None:
        nonlocal count
        count += resolved
        bar.update(looked_at)
        interrupted.check()

    with interrupts() as interrupted:
        try:
            with bar:
                yield told
        except KeyboardInterrupt:
            said = _count(count, group, done)
            said = said if interrupted.is_in_between else f"at least {said}"
            click.echo(f"{said}; interrupted, run it again for the rest", err=True)
            raise click.exceptions.Exit(interrupted.exit_code) from None
        except BaseException:
            if count:
                click.echo(f"{_count(count, group, done)} before this:", err=True)
            raise


# --- which ones


def _chosen(ids: Sequence[str], every: bool, filters: tuple[str | None, str | None, str | None]) -> Chosen:
    """What the command line means. It has to say it in full: these commands can't be undone."""
    if ids and (every or any(filters)):
        raise click.UsageError("Name either IDs, or --all and filters.")
    if not ids and not every:
        raise click.UsageError("Which ones? Name their IDs, or say --all, of which filters take a part.")
    return tuple(ids) or _filter(*filters)


def _filter(task: str | None, reason: str | None, since: str | None) -> Filter:
    from taskq.config import did_you_mean
    from taskq.worker.deadletters import REASONS
    from taskq.worker.deadoffice import Filter

    if reason is not None and reason not in REASONS:
        raise click.BadParameter(f"{reason!r} is no reason{did_you_mean(reason, REASONS)}", param_hint="--reason")
    return Filter(task, reason, None if since is None else _since_ms(since))


def _since_ms(text: str) -> int:
    """A time, or how long ago. What has no time zone is local time."""
    now = datetime.now().astimezone()
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return int((now.timestamp() - int(ago[1]) * _UNITS_S[ago[2]]) * 1000)
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        example = "2h, 30m or 7d, nor like 2026-11-22, 2026-11-22T09:30 or 2026-11-22T09:30Z"
        raise click.BadParameter(f"{text!r} is not like {example}.", param_hint="--since") from None
