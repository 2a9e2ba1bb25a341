"""What the numbers were measured on and with."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir

from benchmarks import redis_server
from benchmarks.peer import Peer


def describe(peers: Iterable[Peer]) -> dict[str, str]:
    packages = sorted({package for peer in peers for package in peer.packages})
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores ({_cpu()}), {platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.1f} before the run, from other work",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "files": f"{_file_system(gettempdir())} (the temporary directory, where logs and databases are)",
        "redis": f"redis-server {redis_server.version()}: {redis_server.SETTINGS}",
        "packages": ", ".join(f"{package} {version(package)}" for package in packages),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path: str) -> str:
    """The type of the file system that holds `path`: of its mount points in /proc/mounts the longest counts."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if path == point or path.startswith(point.rstrip("/") + "/")]
    return max(holding, key=lambda mount: len(mount[0]))[1]


if sys.platform != "linux":
    raise SystemExit("the benchmarks read /proc: they run on Linux")
