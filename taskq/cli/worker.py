"""`taskq worker`: one worker in this process, or a supervisor of one or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from taskq.cli import options
from taskq.cli.introduction import introduce, lines_of
from taskq.cli.logs import say

if TYPE_CHECKING:
    from taskq.config import Settings
    from taskq.worker import Worker
    from taskq.worker.moving import DelaysWorker


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
    drain_timeout: float | None
    max_rss: str | None
    max_invocations: int | None
    reload: bool
    only_delays: bool
    child_fd: int | None
    child_number: int
    introduce: bool

    def overrides(self) -> dict[str, Any]:
        """What is stronger than any other setting."""
        names = ("broker", "concurrency", "metrics_host", "metrics_port", "max_rss", "max_invocations")
        said = {name: getattr(self, name) for name in (*names, "log_level", "log_format")}
        return said | {"drain_timeout_s": self.drain_timeout}


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
@options.setting(
    "--drain-timeout", of="drain_timeout_s", type=float, metavar="SECONDS",
    help="How long what runs may take to end after SIGTERM; what has not will run again.",
)  # fmt: skip
@options.setting(
    "--max-rss", of="max_rss", metavar="SIZE",
    help="Replace a worker process that has more memory, such as 512MiB, when what it runs has ended.",
)  # fmt: skip
@options.setting(
    "--max-invocations", of="max_invocations", type=click.IntRange(1), metavar="N",
    help="Replace a worker process that has run so many; each up to a tenth earlier, so that not all go at once.",
)  # fmt: skip
@click.option(
    "--reload", is_flag=True,
    help="For development: start again when a Python file changes that the app imported, or under the working "
    "directory; with -p, all of them. What runs has 3 seconds to end. Needs taskq[reload].",
)  # fmt: skip
@click.option(
    "--only-delays", is_flag=True,
    help="Run nothing, and need no app: only move delayed invocations to their topics when they are due. "
    "Every other worker does so too.",
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
@click.option("--introduce", is_flag=True, hidden=True, help="Say who this is, though it is a supervisor's worker.")
@click.pass_context
def command(ctx: click.Context, /, **arguments: Any) -> None:
    """Run the invocations of a group.

    Ctrl-C, SIGTERM or SIGHUP drains: what runs may end, nothing new is started. A second one stops at once.
    """
    from taskq.cli.limits import raise_file_limit
    from taskq.config import load_settings
    from taskq.logs import log_to_stderr

    raise_file_limit()
    given = WorkerArguments(**arguments)
    if given.only_delays:
        _check_only_delays(given)
    settings = load_settings(app=given.app, **given.overrides())
    log_to_stderr(settings.log_level, settings.log_format)
    is_recycled = not given.only_delays and (settings.max_rss or settings.max_invocations)
    if given.child_fd is None and (given.processes > 1 or given.reload or is_recycled):
        ctx.exit(_supervise(given, settings))
    ctx.exit(_move(given, settings) if given.only_delays else _work(given, settings))


def _check_only_delays(given: WorkerArguments) -> None:
    """Nothing that is said may be ignored."""
    said = {
        "-g": given.group,
        "-A": given.app,
        "-c": given.concurrency,
        "--max-rss": given.max_rss,
        "--max-invocations": given.max_invocations,
        "--reload": given.reload or None,
    }
    for option, value in said.items():
        if value is not None:
            raise click.UsageError(f"{option} makes no sense with --only-delays, which runs no invocations.")


def _work(given: WorkerArguments, settings: Settings) -> int:
    from taskq.cli.discovery import find_app
    from taskq.errors import ConfigError
    from taskq.worker import Worker, WorkerOptions

    try:
        app = find_app(settings, **given.overrides())
    except BaseException as error:
        _tell_sources(given, error)
        raise
    worker = None
    try:
        if given.child_fd is None and (app.settings.max_rss or app.settings.max_invocations):
            raise ConfigError(
                "max_rss and max_invocations are the supervisor's business, which imports no app: give them as an "
                "option, as TASKQ_MAX_RSS or TASKQ_MAX_INVOCATIONS, or in pyproject.toml"
            )
        group, module = given.group or app.settings.default_group, str(settings.app).partition(":")[0]
        worker = Worker(app, WorkerOptions(group, given.backend, modules=(module,), logs=True))
        lines = lines_of(worker.describe())
        if given.child_fd is None:
            return _work_alone(worker, lines, app.settings, with_metrics=given.metrics)
        worker.recycle_at(app.settings.max_rss, app.settings.max_invocations)
        return _work_as_child(worker, lines, given, given.child_fd)
    finally:
        _close(worker, app.close)


def _tell_sources(given: WorkerArguments, error: BaseException) -> None:
    """Say which files could not be imported, so that their mending is seen."""
    from taskq.worker.link import Parent, Report
    from taskq.worker.reload import imported_sources

    if given.reload and given.child_fd is not None:
        report = Report({}, (), (), sources=imported_sources(error))
        Parent(given.child_fd, lambda: report, lambda: None).tell()


def _move(given: WorkerArguments, settings: Settings) -> int:
    from taskq.broker import connect
    from taskq.worker.moving import DelaysWorker

    broker = connect(settings)
    worker = None
    try:
        worker = DelaysWorker(broker)
        if given.child_fd is None:
            return _work_alone(worker, worker.describe(), settings, with_metrics=given.metrics)
        return _work_as_child(worker, worker.describe(), given, given.child_fd)
    finally:
        _close(worker, broker.close)


def _close(worker: Worker | DelaysWorker | None, close: Callable[[], None]) -> None:
    """Close a broker, when all else has ended. Then there is nothing to wait for any more."""
    from taskq.worker.ending import LEAVE_S_MAX, SYNC_S_MAX

    if worker is not None:
        worker.ending.within(SYNC_S_MAX)
    close()
    if worker is not None:
        worker.ending.within(LEAVE_S_MAX)


def _work_alone(
    worker: Worker | DelaysWorker, lines: list[tuple[str, str]], settings: Settings, *, with_metrics: bool
) -> int:
    from taskq.worker.http import serve

    page = None
    if with_metrics:
        host, port = settings.metrics_host, settings.metrics_port
        page = serve(host, port, worker.metrics_snapshot, worker.health, worker.ready)
    try:
        with worker.catching_signals():
            introduce(lines, page.url if page else "not served")
            worker.ending.start(worker.exit_code, lambda: None)
            return worker.run()
    finally:
        if page:
            page.close()


def _work_as_child(worker: Worker | DelaysWorker, lines: list[tuple[str, str]], given: WorkerArguments, fd: int) -> int:
    from taskq.worker.link import Parent, Report
    from taskq.worker.reload import imported_sources

    def report() -> Report:
        return Report(
            worker.metrics_snapshot(),
            worker.health().reasons,
            worker.ready().reasons,
            worker.drain_timeout_s,
            worker.why_recycled,
            is_drained=worker.has_drained(),
            sources=imported_sources() if given.reload else (),
        )

    with worker.catching_signals():
        if given.introduce:
            introduce(lines, "as the supervisor says")
        link = Parent(fd, report, worker.drain, worker.stop_now)
        link.tell()
        worker.ending.start(worker.exit_code, link.tell)
        try:
            return worker.run()
        finally:
            link.tell()


def _supervise(given: WorkerArguments, settings: Settings) -> int:
    from taskq.worker.http import serve
    from taskq.worker.reload import Watcher, check_installed
    from taskq.worker.supervisor import Supervisor

    if given.reload:
        check_installed()
    introduced = False

    def command(number: int, fd: int) -> list[str]:
        """One of all introduces itself: the others would say the same, and so would its successors in other code."""
        nonlocal introduced
        is_first = number == 0 and (given.reload or not introduced)
        introduced = introduced or is_first
        own = [f"--child-fd={fd}", f"--child-number={number}", *(["--introduce"] if is_first else [])]
        return [sys.executable, "-m", "taskq", "worker", *_child_arguments(given), *own]

    supervisor = Supervisor(
        command, given.processes, drain_timeout_s=settings.drain_timeout_s, awaits_change=given.reload
    )
    with ExitStack() as stack:
        told = "not served"
        if given.metrics:
            page = serve(
                settings.metrics_host,
                settings.metrics_port,
                supervisor.metrics_snapshot,
                supervisor.health,
                supervisor.ready,
            )
            stack.callback(page.close)
            told = page.url
        workers = "one worker" if given.processes == 1 else f"{given.processes} workers"
        say(f"taskq: supervising {workers}; metrics {told}")
        if given.reload:
            stack.enter_context(Watcher(Path.cwd(), supervisor.sources, supervisor.restart))
        return supervisor.run()


def _child_arguments(given: WorkerArguments) -> list[str]:
    """What a child is told: what was given, but for what is the supervisor's own business."""
    passed = asdict(given, filter=lambda attribute, value: value is not None and value is not False)
    for own in ("processes", "metrics", "metrics_host", "metrics_port", "child_number", "introduce"):
        passed.pop(own, None)
    return [f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}" for name, value in passed.items()]
