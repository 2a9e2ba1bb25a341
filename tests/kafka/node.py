"""A Kafka node: a Java process with a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.kafka.jars import Jars
from tests.kafka.settings import CLUSTER_ID
from tests.kafka.tools import QUICK_START

END_S = 30.0

# A node must not outlive a test run that was killed. So it starts with a shell beside it that reads from a pipe whose
# other end only we hold: when we are gone the kernel closes that, everywhere, and the shell kills the node. A line says
# that the node has ended, so that nobody's process is killed who has got its number since.
_ON_A_LEASH = 'exec 3<&0; { read -r _ <&3 || kill -9 $$; } & exec "$@" 3<&- </dev/null'


class NodeFailed(Exception):
    """A node has ended by itself, or does not do in time what it should."""


class Node:
    """One node; `home` has its settings, its data, what it warned of and what it printed.

    It runs in a session of its own, so that Ctrl-C in a terminal is not its end. Without `leash` it outlives us.
    """

    def __init__(
        self, number: int, home: Path, port: int, jars: Jars, options: tuple[str, ...], *, leash: bool = True
    ) -> None:
        self.number = number
        self.home = home
        self.port = port
        self.is_paused = False
        self._jars = jars
        self._options = options
        self._leash = leash
        self._process: subprocess.Popen[bytes] | None = None
        self._should_run = False

    @property
    def address(self) -> str:
        """Host and port of its plain listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def format(self) -> subprocess.Popen[bytes] | None:
        """Begin to prepare its data directory, unless it has one."""
        if (self.home / "data" / "meta.properties").exists():
            return None
        arguments = ("format", "--cluster-id", CLUSTER_ID, "--config", str(self.home / "server.properties"))
        command = self._jars.command("kafka.tools.StorageTool", *arguments, options=QUICK_START)
        with (self.home / "output").open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def start(self) -> None:
        """Start it, on what it has in its directory; `Cluster.wait_ready` waits until it works."""
        assert not self.is_running, f"node {self.number} runs already"
        self._release()
        logging = f"-Dlog4j2.configurationFile={self.home / 'log4j2.xml'}"
        command = self._jars.command(
            "kafka.Kafka", str(self.home / "server.properties"), options=(*self._options, logging)
        )
        if self._leash:
            command = ["/bin/sh", "-c", _ON_A_LEASH, "sh", *command]
        with (self.home / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if self._leash else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.is_paused = False
        self._should_run = True
        (self.home / "pid").write_text(str(self.pid))

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._should_run = False
        if self.is_running:
            assert self._process is not None
            self._process.kill()
            self._process.wait(END_S)
        self._release()

    def begin_stop(self) -> None:
        """SIGTERM."""
        self._should_run = False
        if self.is_running:
            self.resume()
            self._signal(signal.SIGTERM)

    def stop(self, within_s: float = END_S) -> bool:
        """SIGTERM, and SIGKILL when it has not ended in time: whether it had."""
        self.begin_stop()
        try:
            if self._process is not None:
                self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._release()
        return True

    def pause(self) -> None:
        """SIGSTOP: its connections stay, and nobody answers."""
        self._signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # until all its threads stand still
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self.is_paused = False

    def complaints(self) -> str:
        """The end of what it printed and warned of."""
        texts = []
        for name in ("output", "warnings.log"):
            path = self.home / name
            if path.exists():
                texts.append(path.read_text(errors="replace")[-3000:])
        return "\n".join(texts)

    def check(self) -> None:
        """Fail if it has ended by itself."""
        if self._should_run and not self.is_running:
            assert self._process is not None
            raise NodeFailed(f"node {self.number} ended with {self._process.returncode}:\n{self.complaints()}")

    def _signal(self, number: signal.Signals) -> None:
        assert self.is_running, f"node {self.number} does not run"
        assert self._process is not None
        self._process.send_signal(number)

    def _release(self) -> None:
        """Let the leash go: the node has ended."""
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.close()
        except BrokenPipeError:  # somebody killed the shell too
            pass
