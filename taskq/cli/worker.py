"""`taskq worker`: one worker in this process, or a supervisor of several."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from taskq.cli import options
from taskq.cli.logs import say

if TYPE_CHECKING:
    from taskq.config import Settings
    from taskq.worker import Worker, WorkerDescription


@frozen
class WorkerArguments:
    """What the command line said. None: not given."""

    group: str | None
    app: str | None
    broker: str | None
    concurrency: int | None
    processes: int
    backend: str
    metrics_host: str | None
    metrics_port: int | None
    metrics: bool
    log_level: str | None
    log_format: str | None
    child_fd: int | None
    child_number: int

    def overrides(self) -> dict[str, Any]:
        """What is stronger than any other setting."""
        names = ("broker", "concurrency", "metrics_host", "metrics_port", "log_level", "log_format")
        return {name: getattr(self, name) for name in names}


@click.command(name="worker")
@options.setting("-g", "--group", of="default_group", metavar="GROUP", help="The group to work for.")
@options.app
@options.broker
@options.setting(
    "-c", "--concurrency", of="concurrency", type=click.IntRange(1), metavar="N", help="Invocations to run at once."
)
@click.option(
    "-p", "--processes", default=1, type=click.IntRange(1), metavar="N", envvar="TASKQ_PROCESSES", show_envvar=True,
    help="Worker processes; more than one are supervised and restarted.",
)  # fmt: skip
@click.option(
    "--backend", default="asyncio", type=click.Choice(["asyncio", "trio"]), envvar="TASKQ_BACKEND", show_envvar=True,
    help="The event loop of async tasks.",
)  # fmt: skip
@options.metrics_host
@options.setting(
    "--metrics-port", of="metrics_port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Port for /metrics, /healthz and /readyz; 0: any free one.",
)  # fmt: skip
@click.option("--no-metrics", "metrics", is_flag=True, flag_value=False, default=True, help="Serve no metrics.")
@options.log_level
@options.log_format
@click.option("--child-fd", type=int, hidden=True, help="The link to the supervisor.")
@click.option("--child-number", default=0, hidden=True, help="Which of the supervisor's workers this is.")
@click.pass_context
def command(ctx: click.Context, /, **arguments: Any) -> None:
    """Run the invocations of a group.

    Ctrl-C or SIGTERM drains: what runs may end, nothing new is started. A second one stops at once.
    """
    from taskq.cli.limits import raise_file_limit
    from taskq.cli.logs import log_to_stderr
    from taskq.config import load_settings

    raise_file_limit()
    given = WorkerArguments(**arguments)
    said = load_settings(app=given.app, **given.overrides())
    log_to_stderr(said.log_level, said.log_format)
    if given.child_fd is None and given.processes > 1:
        ctx.exit(_supervise(given, said))
    ctx.exit(_work(given, load_settings(app=given.app)))


def _work(given: WorkerArguments, settings: Settings) -> int:
    from taskq.cli.discovery import find_app
    from taskq.worker import Worker, WorkerOptions

    app = find_app(settings, **given.overrides())
    try:
        worker = Worker(app, WorkerOptions(given.group or app.settings.default_group, given.backend))
        if given.child_fd is not None:
            return _work_as_child(worker, given.child_number, given.child_fd)
        return _work_alone(worker, app.settings, with_metrics=given.metrics)
    finally:
        app.close()


def _work_alone(worker: Worker, settings: Settings, *, with_metrics: bool) -> int:
    from taskq.worker.http import serve

    page = None
    if with_metrics:
        host, port = settings.metrics_host, settings.metrics_port
        page = serve(host, port, worker.metrics_snapshot, worker.health, worker.ready)
    try:
        with worker.catching_signals():
            _introduce(worker.describe(), page.url if page else "not served")
            return worker.run()
    finally:
        if page:
            page.close()


def _work_as_child(worker: Worker, number: int, fd: int) -> int:
    from taskq.worker.link import Parent, Report

    def report() -> Report:
        return Report(worker.metrics_snapshot(), worker.health().reasons, worker.ready().reasons)

    with worker.catching_signals():
        if number == 0:  # the others would say the same
            _introduce(worker.describe(), "as the supervisor says")
        link = Parent(fd, report, worker.drain)
        try:
            return worker.run()
        finally:
            link.tell_last()


def _supervise(given: WorkerArguments, settings: Settings) -> int:
    from taskq.worker.http import serve
    from taskq.worker.supervisor import Supervisor

    supervisor = Supervisor(
        lambda number, fd: [sys.executable, "-m", "taskq", "worker", *_child_arguments(given, number, fd)],
        given.processes,
        drain_timeout_s=settings.drain_timeout_s,
    )
    if not given.metrics:
        say(f"taskq: supervising {given.processes} workers; metrics not served")
        return supervisor.run()
    page = serve(
        settings.metrics_host,
        settings.metrics_port,
        supervisor.metrics_snapshot,
        supervisor.health,
        supervisor.ready,
    )
    say(f"taskq: supervising {given.processes} workers; metrics {page.url}")
    try:
        return supervisor.run()
    finally:
        page.close()


def _child_arguments(given: WorkerArguments, number: int, fd: int) -> list[str]:
    """The command line of a child: what was given, but for what is the supervisor's own business."""
    passed = asdict(given, filter=lambda attribute, value: value is not None)
    for own in ("processes", "metrics", "metrics_host", "metrics_port", "child_number"):
        passed.pop(own, None)
    said = [f"--{name.replace('_', '-')}={value}" for name, value in passed.items()]
    return [*said, f"--child-fd={fd}", f"--child-number={number}"]


def _introduce(worker: WorkerDescription, metrics: str) -> None:
    """Say who works here: the first lines of a worker."""
    topics = ", ".join(f"{name} ({count} partitions)" for name, count in worker.topics)
    lines = [
        f"taskq {worker.version}, group {worker.group}",
        f"  broker       {worker.broker}",
        f"  tasks        {', '.join(worker.tasks)}",
        f"  topics       {topics}",
        f"  concurrency  {worker.concurrency}, on {worker.backend}",
        f"  metrics      {metrics}",
    ]
    say("\n".join(lines))
