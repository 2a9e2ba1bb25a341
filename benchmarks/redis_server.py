"""A redis-server of our own: loopback, a free port, its own directory, nothing persistent."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import running

SETTINGS = "loopback TCP, no RDB snapshots, no append-only file"
_START_TIMEOUT_S = 10.0


def find() -> str | None:
    return shutil.which("redis-server")


def version() -> str:
    program = find()
    if program is None:
        return "missing"
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return answer.split("v=")[1].split()[0]


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a server; its URL. It is stopped on the way out."""
    program = find()
    if program is None:
        raise FileNotFoundError("redis-server is not installed")
    port = _free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", "", "--appendonly", "no"]
    with running([program, *options], os.environ, directory, directory / "redis.log"):
        _wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(16).startswith(b"+PONG"):
                return
        if time.monotonic() > deadline:
            raise TimeoutError("redis-server does not answer")
        time.sleep(0.02)
