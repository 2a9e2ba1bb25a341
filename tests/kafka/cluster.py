"""A real Kafka on loopback, of one KRaft node or three, for tests, benchmarks and people.

    cluster = Cluster.start(tmp_path, nodes=3)
    cluster.bootstrap         # "127.0.0.1:20001,127.0.0.1:20002,127.0.0.1:20003"
    cluster.node(1).kill()    # SIGKILL; .start() again on the same data; also .stop(), .pause(), .resume()
    cluster.wait_ready()
    cluster.tool("kafka-topics", "--describe")
    cluster.close()

Every node is broker and controller, and listens without any security. With `sasl` it also does for `settings.USERS`,
with their passwords (PLAIN), and ACLs hold; with `tls` by a certificate that `authority` vouches for; with both also
for users through TLS: `listener("SASL_SSL")`. Whoever comes without SASL is a superuser.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kafka import certificates, protocol, tools
from tests.kafka.jars import Jars, fetch
from tests.kafka.node import Node, NodeFailed
from tests.kafka.ports import Ports, is_taken
from tests.kafka.settings import CONTROLLER, QUICK, Layout

if TYPE_CHECKING:
    from tests.kafka.emptying import Emptying

READY_S = 60.0
FORMAT_S = 60.0
STOP_S = 10.0

FOR_TESTS = ("-Xms64m", "-Xmx512m", *tools.QUICK_START)
"""Java's options where a node does not live long."""


class PortTaken(Exception):
    """Something else listens where a node should."""


class Cluster:
    """Nodes that belong together, all started by this process."""

    def __init__(self, jars: Jars, layout: Layout, nodes: Sequence[Node], ports: Ports | None) -> None:
        self.jars = jars
        self.nodes = list(nodes)
        self.authority: Path | None = layout.folder / "authority.pem" if layout.key_store else None
        self._layout = layout
        self._ports = ports
        self._emptying: Emptying | None = None
        self.has_acls = any("SASL_PLAINTEXT" in one for one in layout.ports.values())

    @classmethod
    def start(
        cls,
        folder: Path,
        nodes: int = 1,
        properties: Mapping[str, object] | None = None,
        *,
        sasl: bool = False,
        tls: bool = False,
    ) -> Cluster:
        """A new cluster for a test, ready; `properties` are added to its `server.properties`."""
        jars, ports = fetch(), Ports()
        try:
            listeners = _listeners(sasl, tls)
            layout = Layout(
                folder,
                lay_out(nodes, ports.numbers, listeners),
                {**QUICK, **(properties or {})},
                certificates.make(jars, folder)[0] if tls else None,
            )
            return cls.launch(jars, layout, FOR_TESTS, ports)
        except BaseException:
            ports.close()
            raise

    @classmethod
    def launch(
        cls, jars: Jars, layout: Layout, options: tuple[str, ...], ports: Ports | None = None, *, leash: bool = True
    ) -> Cluster:
        """Start what is laid out and wait until it works; without `leash` it lives on when this process ends."""
        check_free(layout.ports)
        nodes = [
            Node(number, layout.home(number), one["PLAINTEXT"], jars, options, leash=leash)
            for number, one in layout.ports.items()
        ]
        cluster = cls(jars, layout, nodes, ports)
        for node in nodes:
            layout.write(node.number)
        try:
            cluster._format()
            for node in nodes:
                node.start()
            cluster.wait_ready()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _format(self) -> None:
        runs = [(node, run) for node in self.nodes if (run := node.format()) is not None]
        try:
            for node, run in runs:
                if run.wait(FORMAT_S):
                    raise NodeFailed(f"node {node.number} can't be formatted:\n{node.complaints()}")
        finally:
            for _, run in runs:
                run.kill()
                run.wait()

    @property
    def bootstrap(self) -> str:
        """The addresses of the plain listeners."""
        return self.listener("PLAINTEXT")

    def listener(self, protocol: str) -> str:
        """The addresses of all nodes for SASL_PLAINTEXT, SSL or SASL_SSL, as `bootstrap.servers` wants them."""
        return ",".join(f"127.0.0.1:{ports[protocol]}" for ports in self._layout.ports.values())

    def node(self, number: int) -> Node:
        """A node by its number, from 1 on, as Kafka names it where leaders and replicas are told."""
        return self.nodes[number - 1]

    def wait_ready(self, within_s: float = READY_S) -> None:
        """Wait until each node that runs knows exactly these as alive, and all the same one as controller."""
        doubt = "it never answered"

        def is_ready() -> bool:
            nonlocal doubt
            running = [node for node in self.nodes if node.is_running and not node.is_paused]
            expected = {node.number for node in running}
            leaders = set()
            for node in self.nodes:
                node.check()
            for node in running:
                try:
                    known = protocol.nodes(node.port)
                    if known != expected:
                        doubt = f"node {node.number} knows {known} as alive, and {expected} run"
                        return False
                    leaders.add(protocol.leader(node.port))  # asks the controller, which may be the one that is away
                except protocol.NoAnswer as error:
                    doubt = f"node {node.number} does not answer: {error}"
                    return False
            doubt = f"the controller is one of {leaders}"
            return len(leaders) == 1 and leaders <= expected

        if not wait(is_ready, within_s):
            raise NodeFailed(f"not ready within {within_s} s: {doubt}\n{self.nodes[0].complaints()}")

    def leader(self) -> Node:
        """The node whose controller is active."""
        running = [node for node in self.nodes if node.is_running and not node.is_paused]
        return self.node(protocol.leader(running[0].port))

    def tool(self, name: str, *arguments: str, within_s: float = 50) -> str:
        """What one of Kafka's tools (`tools.TOOLS`) prints; `--bootstrap-server` is added."""
        return tools.run(self.jars, name, *arguments, bootstrap=self.bootstrap, within_s=within_s)

    def reset(self, within_s: float = 30) -> None:
        """Delete all topics and groups, and ACLs where there are any, and wait until no node knows them."""
        if self._emptying is None:
            from tests.kafka.emptying import Emptying  # what needs no confluent-kafka works without

            self._emptying = Emptying(self)
        self._emptying.run(within_s)

    def stop(self, within_s: float = STOP_S) -> None:
        """SIGTERM to all at once. Who leaves last may wait for the others, so SIGKILL to those that take longer."""
        for node in self.nodes:
            node.begin_stop()
        end = time.monotonic() + within_s
        for node in self.nodes:
            node.stop(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """SIGKILL to all, and their ports are free for others. The data stays where it is."""
        self._emptying = None
        for node in self.nodes:
            node.kill()
        if self._ports is not None:
            self._ports.close()


def lay_out(nodes: int, numbers: Sequence[int], listeners: Sequence[str]) -> dict[int, dict[str, int]]:
    """Which node listens where: all for one listener beside each other, the controllers last."""
    return {
        node + 1: {name: numbers[nodes * place + node] for place, name in enumerate((*listeners, CONTROLLER))}
        for node in range(nodes)
    }


def check_free(ports: Mapping[int, Mapping[str, int]]) -> None:
    """Fail if something else listens where a node should."""
    for port in (port for one in ports.values() for port in one.values()):
        if is_taken(port):
            raise PortTaken(f"something listens on 127.0.0.1:{port} already")


def wait(condition: Callable[[], bool], within_s: float, every_s: float = 0.05) -> bool:
    """Whether `condition` comes true in time."""
    clock, end = threading.Event(), time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        clock.wait(every_s)
    return True


def _listeners(sasl: bool, tls: bool) -> list[str]:
    return [
        "PLAINTEXT",
        *(["SASL_PLAINTEXT"] if sasl else []),
        *(["SSL"] if tls else []),
        *(["SASL_SSL"] if sasl and tls else []),
    ]
