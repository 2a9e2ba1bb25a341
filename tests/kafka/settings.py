"""What the nodes' `server.properties` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kafka import certificates

CLUSTER_ID = "taskq-0000000000000000"
"""22 characters of base64, as Kafka wants it."""

USERS = {name: f"{name}-secret" for name in ("admin", "alice", "bob")}
"""Who may log in where there is SASL, and their passwords. `admin` may do everything, the others what ACLs say."""

CONTROLLER = "CONTROLLER"

QUICK = {
    "background.threads": 2,
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 3000,
    "group.consumer.heartbeat.interval.ms": 500,
    "group.consumer.min.heartbeat.interval.ms": 100,
    "group.consumer.min.session.timeout.ms": 1000,
    "group.consumer.session.timeout.ms": 6000,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,
    "group.share.heartbeat.interval.ms": 500,
    "group.share.min.heartbeat.interval.ms": 100,
    "group.share.min.session.timeout.ms": 1000,
    "group.share.session.timeout.ms": 6000,
    "log.cleaner.dedupe.buffer.size": 4 << 20,
    "log.segment.delete.delay.ms": 0,
    "num.io.threads": 2,
    "num.network.threads": 1,
    "offsets.topic.num.partitions": 4,
    "request.timeout.ms": 5000,
    "share.coordinator.state.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
}
"""For tests: few threads and files, and nobody waits long for who has died."""


@dataclass(frozen=True)
class Layout:
    """What all nodes of a cluster have in common. `ports` has a node's port for each listener, by the node's number."""

    folder: Path
    ports: Mapping[int, Mapping[str, int]]
    extra: Mapping[str, object] = field(default_factory=dict)
    key_store: Path | None = None

    def home(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    def write(self, number: int) -> None:
        """Write the node's `server.properties`, and how it logs."""
        home = self.home(number)
        home.mkdir(parents=True, exist_ok=True)
        lines = (f"{name}={value}\n" for name, value in self._properties(number).items())
        (home / "server.properties").write_text("".join(lines))
        (home / "log4j2.xml").write_text(_LOGGING.format(file=home / "warnings.log"))

    def _properties(self, number: int) -> dict[str, object]:
        replicas = min(3, len(self.ports))
        voters = (f"{one}@127.0.0.1:{ports[CONTROLLER]}" for one, ports in self.ports.items())
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": number,
            "log.dirs": self.home(number) / "data",
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": CONTROLLER,
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in self.ports[number].items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{'PLAINTEXT' if name == CONTROLLER else name}" for name in self.ports[number]
            ),
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
        }
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            properties[f"{topic}.replication.factor"] = replicas
        for topic in ("transaction.state.log", "share.coordinator.state.topic"):
            properties[f"{topic}.min.isr"] = min(2, replicas)
        return {**properties, **self._security(number), **self.extra}

    def _security(self, number: int) -> dict[str, object]:
        properties: dict[str, object] = {}
        if any(name.startswith("SASL") for name in self.ports[number]):
            users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
            login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            properties = {
                "sasl.enabled.mechanisms": "PLAIN",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # Without SASL come the nodes themselves, the tools, and who looks after the tests.
                "super.users": "User:admin;User:ANONYMOUS",
            }
            for name in self.ports[number]:
                if name.startswith("SASL"):
                    properties[f"listener.name.{name.lower()}.plain.sasl.jaas.config"] = login
        if self.key_store is not None:
            properties["ssl.keystore.location"] = self.key_store
            properties["ssl.keystore.type"] = "PKCS12"
            properties["ssl.keystore.password"] = certificates.PASSWORD
            properties["ssl.key.password"] = certificates.PASSWORD
        return properties


_LOGGING = """<Configuration status="error">
  <Appenders>
    <File name="warnings" fileName="{file}"><PatternLayout pattern="%d{{ISO8601}} %p %c{{1}} %m%n"/></File>
  </Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="warnings"/></Root></Loggers>
</Configuration>
"""
