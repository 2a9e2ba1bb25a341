"""`taskq log`: look inside a log's files, whether or not others use them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from taskq.cli import options
from taskq.cli.output import show_json

if TYPE_CHECKING:
    from taskq.broker.log.inspection import Finding
    from taskq.broker.log.verify import Verified

_PROGRESS_BYTES_MIN = 16 * 1024 * 1024


@click.group(name="log", cls=options.HintingGroup, help="Verify a log and look inside its files.")
def command() -> None:
    """`taskq log`."""


@command.command(name="verify")
@click.argument("path", type=click.Path(), required=False)
@options.broker
@options.as_json
def verify_log(path: str | None, broker: str | None, as_json: bool) -> None:
    """Check everything in PATH: a data directory, a topic's or a partition's directory, or one .log file.

    Without PATH, the broker's data directory.

    Changes nothing, and may run while others publish and work. Says which file is damaged at which byte, and what is
    lost by that. Exit code 1 if anything is damaged. Warnings are of what heals by itself.
    """
    from taskq.broker.log.files import RealFiles
    from taskq.broker.log.verify import verify

    files, where = RealFiles(), path or _data_directory(broker)
    with _progress(files, where) as progress:
        found = verify(files, where, progress)
    if as_json:
        show_json(_as_json(found))
    else:
        _show(found)
    if found.is_damaged:
        raise click.exceptions.Exit(1)


def _data_directory(broker: str | None) -> str:
    """The directory of the broker that is configured."""
    from taskq.cli.brokers import settings_of
    from taskq.urls import path_of, shown

    url = settings_of(broker).broker
    if not url.startswith("file:"):
        raise click.UsageError(f"the broker {shown(url)} has no files to look into; name a PATH")
    return str(path_of(url))


@contextmanager
def _progress(files: Any, path: str) -> Generator[Callable[[int], object]]:
    """A bar on a terminal if there is much to look through."""
    from taskq.broker.log.verify import log_files

    total = 0
    if sys.stderr.isatty():
        total = sum(files.size_of(one) for one in log_files(files, path))
    if total < _PROGRESS_BYTES_MIN:
        yield lambda size: None
        return
    with click.progressbar(length=total, label="verifying", file=sys.stderr) as bar:
        yield bar.update


def _as_json(found: Verified) -> dict[str, Any]:
    from attrs import asdict

    findings = [{**asdict(one), "records_max": one.records_max} for one in found.findings]
    return {"damaged": found.is_damaged, "findings": findings, "looked_through": asdict(found.counts)}


def _show(found: Verified) -> None:
    from attrs import asdict

    for one in found.findings:
        click.echo(f"{one.severity}: {one.file}: {_said(one)}")
    counts = found.counts
    looked = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in asdict(counts).items())
    click.echo(f"{looked}: {'damaged' if found.is_damaged else 'sound'}")


def _said(one: Finding) -> str:
    text = one.what if one.position is None else f"byte {one.position}: {one.what}"
    if one.size_bytes is not None:
        text += f"; {one.size_bytes} bytes"
    if one.offset is not None:
        if one.next_offset is None:
            text += f"; offsets from {one.offset} on are lost"
        elif one.next_offset > one.offset:
            text += f"; offsets {one.offset} to {one.next_offset - 1} are lost, at most {one.records_max} records"
    return text


@command.command(name="dump")
@click.argument("path", type=click.Path(), required=False)
@click.option("--records", is_flag=True, help="Show the records too: an invocation's task, id and arguments.")
@click.option("--skip", is_flag=True, help="Pass over damage, and say what is lost by it. Else it ends there.")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Begin at this offset.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after N batches, or with --records N records.")
@options.broker
@options.as_json
def dump_log(
    path: str | None, records: bool, skip: bool, offset: int, limit: int | None, broker: str | None, as_json: bool
) -> None:
    """Print what is in PATH: a data directory, a topic's or a partition's directory, or one file.

    Without PATH, the broker's data directory. Changes nothing, and may run while others publish and work. Nothing is
    unpickled.
    """
    from taskq.broker.log.dump import Dump
    from taskq.broker.log.files import RealFiles
    from taskq.cli.batches import Enough, JsonPrinter, TextPrinter

    where = path or _data_directory(broker)
    printer = (JsonPrinter if as_json else TextPrinter)(records, limit)
    try:
        with printer:
            Dump(RealFiles(), printer.batch, printer.lost if skip else None, offset, records).run(where)
    except Enough:
        return
