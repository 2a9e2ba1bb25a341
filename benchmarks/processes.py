"""Starting processes, looking at them, and ending them. Only what was started here is ever signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

_TERMINATION_GRACE_S = 5.0


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                pids.extend(int(child) for child in Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return pids


@frozen
class Usage:
    """Memory in bytes (`pss` counts a shared page once, split over those who share it), CPU time in ns."""

    pss: int
    rss: int
    rss_peak: int
    cpu_ns: int
    processes: int


def usage(roots: Sequence[int]) -> Usage:
    """What the trees below `roots` use together."""
    pss = rss = rss_peak = cpu_ns = 0
    pids = [pid for root in roots for pid in tree(root)]
    for each in pids:
        with contextlib.suppress(OSError):
            pss += _kilobytes(Path(f"/proc/{each}/smaps_rollup"), "Pss:") * 1024
            status = Path(f"/proc/{each}/status")
            rss += _kilobytes(status, "VmRSS:") * 1024
            rss_peak += _kilobytes(status, "VmHWM:") * 1024
            for thread in os.listdir(f"/proc/{each}/task"):
                cpu_ns += int(Path(f"/proc/{each}/task/{thread}/schedstat").read_text().split()[0])
    return Usage(pss, rss, rss_peak, cpu_ns, len(pids))


def _kilobytes(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


@contextlib.contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], cwd: Path, log: Path, answer: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a process group of its own, its errors going to `log` and its output to `answer`, or to `log`
    too. The whole group is ended on the way out."""
    with log.open("ab") as errors, (answer or log).open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, then make sure that nothing of its group is left. Ctrl-C does not interrupt this."""
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        family = tree(process.pid)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TERMINATION_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_gone([pid for pid in family if pid != process.pid])
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


def _wait_gone(pids: Sequence[int]) -> None:
    """Descendants end as orphans: wait until they have, so that the next run has the machine for itself."""
    deadline = time.monotonic() + _TERMINATION_GRACE_S
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.01)
