"""`scripts/kafka`: Kafka for people and benchmarks. It outlives the shell, and its directory says what runs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kafka import protocol, tools
from tests.kafka.cluster import STOP_S, Cluster, PortTaken, check_free, lay_out, wait
from tests.kafka.jars import Unavailable, cache, fetch
from tests.kafka.node import NodeFailed
from tests.kafka.settings import Layout

JAVA_OPTIONS = ("-Xms256m", "-Xmx1g")
INSTALL = {
    "java": "Kafka needs Java 17 or newer: on Debian and Ubuntu `apt install default-jre-headless`, on macOS "
    "`brew install openjdk`. Without Java there is the docker image: docs/testing.md says how.",
    "mvn": "Maven is needed once, to fetch Kafka: on Debian and Ubuntu `apt install maven`, on macOS "
    "`brew install maven`.",
}


class Refused(Exception):
    """What was asked for can't be done, in words for who asked."""


@dataclass(frozen=True)
class Running:
    """What a directory says of the cluster that was started there."""

    folder: Path
    ports: dict[int, dict[str, int]]

    @classmethod
    def find(cls, folder: Path) -> Running | None:
        """The cluster that was started in `folder` last, whether it still runs or not."""
        try:
            ports = json.loads((folder / "ports.json").read_text())
        except FileNotFoundError:
            return None
        return cls(folder, {int(number): one for number, one in ports.items()})

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{one['PLAINTEXT']}" for one in self.ports.values())

    def pids(self) -> dict[int, int]:
        """The processes of the nodes that run."""
        found = {}
        for number in self.ports:
            home = self.folder / f"node-{number}"
            try:
                pid = int((home / "pid").read_text())
            except (FileNotFoundError, ValueError):
                continue
            if str(home / "server.properties") in _command_of(pid):  # else somebody has got the number since
                found[number] = pid
        return found


def main() -> int:
    """Do what the command line says; the exit code."""
    arguments = _parser().parse_args()
    folder = Path(arguments.folder).resolve() if arguments.folder else cache() / "kafka"
    try:
        if arguments.command == "start":
            return _start(folder, arguments.nodes, arguments.port)
        if arguments.command == "stop":
            return _stop(folder, arguments.delete)
        if arguments.command == "status":
            return _status(folder)
        return _tool(folder, arguments.name, arguments.arguments)
    except Unavailable as problem:
        return _complain(f"{problem}. {INSTALL[problem.need]}")
    except PortTaken as problem:
        return _complain(f"{problem}: choose another --port, or stop what is there")
    except (Refused, NodeFailed) as problem:
        return _complain(str(problem))


def _start(folder: Path, nodes: int, port: int) -> int:
    before = Running.find(folder)
    if before is not None:
        if before.pids():
            raise Refused(f"it runs already: kafka://{before.bootstrap}, from {folder}")
        if len(before.ports) != nodes:
            raise Refused(
                f"{folder} has the data of {len(before.ports)} node(s): start as many, choose another --folder, or "
                f"delete it with `{_ourselves(folder, 'stop')} --delete`"
            )
    jars = fetch()
    ports = lay_out(nodes, range(port, port + 2 * nodes), ["PLAINTEXT"])
    check_free(ports)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ports.json").write_text(json.dumps(ports))
    cluster = Cluster.launch(jars, Layout(folder, ports), JAVA_OPTIONS, leash=False)
    print(f"kafka://{cluster.bootstrap}")
    print(f"data, settings and warnings: {folder}", f"stop: {_ourselves(folder, 'stop')}", sep="\n", file=sys.stderr)
    return 0


def _stop(folder: Path, delete: bool) -> int:
    running = Running.find(folder)
    if running is None:
        raise Refused(f"nothing was started in {folder}")
    for pid in running.pids().values():
        os.kill(pid, signal.SIGTERM)
    if not wait(lambda: not running.pids(), STOP_S):
        for pid in running.pids().values():
            os.kill(pid, signal.SIGKILL)
        wait(lambda: not running.pids(), STOP_S)
    if delete:
        for number in running.ports:
            shutil.rmtree(folder / f"node-{number}", ignore_errors=True)
        (folder / "ports.json").unlink()
    return 0


def _status(folder: Path) -> int:
    running = Running.find(folder)
    if running is None:
        raise Refused(f"nothing was started in {folder}")
    pids, healthy = running.pids(), True
    for number, ports in running.ports.items():
        try:
            alive = number in protocol.nodes(ports["PLAINTEXT"])
        except protocol.NoAnswer:
            alive = False
        healthy = healthy and alive and number in pids
        state = f"process {pids[number]}" if number in pids else "no process"
        print(f"node {number}: 127.0.0.1:{ports['PLAINTEXT']}, {state}, {'answers' if alive else 'does not answer'}")
    if healthy:
        print(f"kafka://{running.bootstrap}")
    return 0 if healthy else 1


def _tool(folder: Path, name: str, arguments: list[str]) -> int:
    if name not in tools.TOOLS:
        raise Refused(f"no tool {name}, but {', '.join(tools.TOOLS)}")
    running = Running.find(folder)
    if running is None and name not in tools.OFFLINE and "--bootstrap-server" not in arguments:
        raise Refused(f"nothing was started in {folder}: start it, or say --bootstrap-server")
    command = tools.command(fetch(), name, *arguments, bootstrap=running.bootstrap if running else None)
    os.execv(command[0], command)


def _command_of(pid: int) -> str:
    """The command line of a process, empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
    return subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "command="], capture_output=True, text=True).stdout


def _ourselves(folder: Path, command: str) -> str:
    return f"scripts/kafka {command}" + ("" if folder == cache() / "kafka" else f" --folder {folder}")


def _complain(text: str) -> int:
    print(f"scripts/kafka: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/kafka",
        description="A real Apache Kafka on this machine, fetched with Maven. See docs/testing.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start one node or three, and print their kafka:// URL")
    start.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    start.add_argument(
        "--port", type=int, default=9092, help="of the first node; the others and the controllers follow"
    )
    stop = commands.add_parser("stop", help="stop them; what they have stays")
    stop.add_argument("--delete", action="store_true", help="delete what they have, too")
    status = commands.add_parser("status", help="what runs; exit code 1 if something does not")
    tool = commands.add_parser("tool", help="run one of Kafka's tools: scripts/kafka tool kafka-topics --list")
    for command in (start, stop, status, tool):
        command.add_argument("--folder", help="where it keeps everything (default: in the cache)")
    tool.add_argument("name")
    tool.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser
