"""`taskq exporter`: backlog metrics without a worker."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import click

from taskq.cli import options

if TYPE_CHECKING:
    from taskq.config import Settings

PORT_DEFAULT = 9465


@click.command(name="exporter")
@options.broker
@options.app
@options.metrics_host
@options.all_names
@click.option(
    "--port", default=PORT_DEFAULT, show_default=True, type=click.IntRange(0, 65535), metavar="PORT",
    envvar="TASKQ_EXPORTER_PORT", show_envvar=True, help="Port for /metrics, /healthz and /readyz; 0: any free one.",
)  # fmt: skip
def command(broker: str | None, app: str | None, metrics_host: str | None, show_all: bool, port: int) -> None:
    """Serve backlog metrics without a worker.

    All groups that have ever run on the broker are shown; with an app, also those of its groups that have not.
    """
    from taskq.broker import connect
    from taskq.cli.limits import raise_file_limit
    from taskq.config import load_settings
    from taskq.exporter import Exporter
    from taskq.logs import log_to_stderr
    from taskq.metrics import Metrics
    from taskq.worker.http import Health, serve

    log_to_stderr()
    raise_file_limit()
    settings = load_settings(broker=broker, app=app, metrics_host=metrics_host)
    groups = _groups_of_app(settings)
    found = connect(settings)
    try:
        exporter = Exporter(found, groups, internal=show_all)
        metrics = Metrics()
        metrics.add_source(exporter.samples)
        page = serve(
            settings.metrics_host, port, metrics.snapshot, Health, exporter.ready, advice="--port 0 takes any free port"
        )
        click.echo(f"taskq exporter of {found.url}\n  metrics  {page.url}", err=True)
        _wait_for_signal()
        page.close()
    finally:
        found.close()


def _wait_for_signal() -> None:
    told_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: told_to_stop.set())
    told_to_stop.wait()


def _groups_of_app(settings: Settings) -> dict[str, tuple[str, ...]]:
    if settings.app is None:
        return {}
    from taskq.cli.discovery import find_app

    app = find_app(settings)
    return {group: app.topics(group) for group in app.groups()}
