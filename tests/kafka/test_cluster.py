"""The Kafka that tests get: it works, loses nodes and gets them back, is empty when it should be, leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka import jars
from tests.kafka.cluster import Cluster
from tests.kafka.jars import Jars, Unavailable
from tests.kafka.ports import Ports, is_taken
from tests.kafka.settings import USERS
from tests.kafka.tools import ToolFailed
from tests.processes import WAIT_S, is_gone, wait_until

Settings = dict[str, str | int | float | bool]


def client(servers: str, extra: Mapping[str, str] | None = None) -> Settings:
    """A client's settings; it says nothing of servers that are gone."""
    return {"bootstrap.servers": servers, "log_level": 0, **(extra or {})}


def create(cluster: Cluster, topic: str, partitions: int = 1, config: dict[str, str] | None = None) -> None:
    admin = AdminClient(client(cluster.bootstrap))
    (future,) = admin.create_topics([NewTopic(topic, partitions, config=config or {})]).values()
    future.result(WAIT_S)


def publish(settings: Settings, topic: str, *values: bytes) -> None:
    """Publish, and fail with what the broker said against it."""
    refused: list[KafkaError] = []
    producer = Producer({**settings, "acks": "all", "message.timeout.ms": 20_000})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: refused.append(error) if error else None)
    assert producer.flush(WAIT_S) == 0
    if refused:
        raise KafkaException(refused[0])


def read(settings: Settings, topic: str, count: int) -> list[bytes]:
    """The first records of partition 0; they are committed for the group `readers`."""
    consumer = Consumer({**settings, "group.id": "readers"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found = [message for message in consumer.consume(count, WAIT_S) if not message.error()]
        consumer.commit(offsets=[TopicPartition(topic, 0, len(found))], asynchronous=False)
        return [message.value() or b"" for message in found]
    finally:
        consumer.close()


def test_what_is_published_is_read_and_then_gone(kafka: Cluster) -> None:
    kafka.reset()
    create(kafka, "numbers")
    publish(client(kafka.bootstrap), "numbers", b"1", b"2", b"3")
    assert read(client(kafka.bootstrap), "numbers", 3) == [b"1", b"2", b"3"]
    assert "numbers" in kafka.tool("kafka-topics", "--list").split()
    assert "readers" in kafka.tool("kafka-consumer-groups", "--list").split()

    kafka.reset()
    admin = AdminClient(client(kafka.bootstrap))
    assert {name for name in admin.list_topics(timeout=WAIT_S).topics if not name.startswith("__")} == set()
    assert admin.list_consumer_groups().result(WAIT_S).valid == []
    create(kafka, "numbers", 2)  # by the same name again
    assert admin.list_topics("numbers", timeout=WAIT_S).topics["numbers"].partitions.keys() == {0, 1}


def test_a_tool_that_fails_says_why(kafka: Cluster) -> None:
    with pytest.raises(ToolFailed, match="'nothing' does not exist"):
        kafka.tool("kafka-topics", "--describe", "--topic", "nothing")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("kafka-acls", ["--version"], "4."),
        ("kafka-cluster", ["cluster-id"], "Cluster ID: taskq"),
        ("kafka-configs", ["--describe", "--entity-type", "brokers", "--entity-name", "1", "--all"], "node.id=1"),
        ("kafka-metadata-quorum", ["describe", "--status"], "LeaderId:               1"),
        ("kafka-storage", ["random-uuid"], ""),
    ],
)
def test_tools_of_each_kind(kafka: Cluster, name: str, arguments: list[str], expected: str) -> None:
    assert expected in kafka.tool(name, *arguments)


@pytest.mark.alone
def test_killed_and_started_again_it_has_what_it_had(kafka_jars: Jars, tmp_path: Path) -> None:
    cluster = Cluster.start(tmp_path)
    try:
        create(cluster, "kept")
        publish(client(cluster.bootstrap), "kept", b"before")
        cluster.node(1).kill()
        cluster.node(1).start()
        cluster.wait_ready()
        publish(client(cluster.bootstrap), "kept", b"after")
        assert read(client(cluster.bootstrap), "kept", 2) == [b"before", b"after"]
        assert cluster.node(1).stop()
    finally:
        cluster.close()


@pytest.fixture
def topic_of_three(kafka3: Cluster) -> Iterator[str]:
    create(kafka3, "three", config={"min.insync.replicas": "2"})
    yield "three"
    kafka3.reset()


def leader_of(cluster: Cluster, topic: str) -> int:
    admin = AdminClient(client(cluster.bootstrap))
    return int(admin.list_topics(topic, timeout=WAIT_S).topics[topic].partitions[0].leader)


def in_sync(cluster: Cluster, topic: str) -> set[int]:
    admin = AdminClient(client(cluster.bootstrap))
    return set(admin.list_topics(topic, timeout=WAIT_S).topics[topic].partitions[0].isrs)


@pytest.mark.alone
def test_a_node_is_killed_and_its_topic_goes_on(kafka3: Cluster, topic_of_three: str) -> None:
    settings = client(kafka3.bootstrap)
    publish(settings, topic_of_three, b"1")
    killed = leader_of(kafka3, topic_of_three)
    kafka3.node(killed).kill()
    publish(settings, topic_of_three, b"2")
    assert leader_of(kafka3, topic_of_three) != killed
    kafka3.wait_ready()  # the others know

    kafka3.node(killed).start()
    kafka3.wait_ready()
    wait_until(lambda: in_sync(kafka3, topic_of_three) == {1, 2, 3}, "all replicas are in sync again")
    kafka3.tool("kafka-leader-election", "--election-type", "preferred", "--all-topic-partitions")
    assert read(settings, topic_of_three, 2) == [b"1", b"2"]


@pytest.mark.alone
def test_a_node_that_pauses_is_out_until_it_goes_on(kafka3: Cluster, topic_of_three: str) -> None:
    controller = kafka3.leader()  # not that one: whom the others ask then may take minutes to say nothing
    paused = next(node for node in kafka3.nodes if node is not controller)
    paused.pause()
    try:
        kafka3.wait_ready()
        assert leader_of(kafka3, topic_of_three) != paused.number
        publish(client(kafka3.bootstrap), topic_of_three, b"meanwhile")
    finally:
        paused.resume()
    kafka3.wait_ready()
    wait_until(lambda: in_sync(kafka3, topic_of_three) == {1, 2, 3}, "all replicas are in sync again")


@pytest.mark.alone
def test_users_may_do_what_acls_say_through_tls_too(kafka_jars: Jars, tmp_path: Path) -> None:
    cluster = Cluster.start(tmp_path, sasl=True, tls=True)
    try:
        create(cluster, "guarded")
        login = {"sasl.mechanism": "PLAIN", "sasl.username": "alice", "sasl.password": USERS["alice"]}
        trust = {"ssl.ca.location": str(cluster.authority)}
        plain = client(cluster.listener("SASL_PLAINTEXT"), {"security.protocol": "SASL_PLAINTEXT", **login})
        safe = client(cluster.listener("SASL_SSL"), {"security.protocol": "SASL_SSL", **login, **trust})
        for settings in (plain, safe):
            with pytest.raises(KafkaException, match="authorization failed"):
                publish(settings, "guarded", b"refused")
        admin = AdminClient(client(cluster.bootstrap))  # held: its futures end with it
        (future,) = admin.create_acls([_may_write("alice", "guarded")]).values()
        future.result(WAIT_S)
        for settings in (plain, safe):
            publish(settings, "guarded", b"allowed")
        publish(client(cluster.listener("SSL"), {"security.protocol": "SSL", **trust}), "guarded", b"by TLS alone")
        assert read(client(cluster.bootstrap), "guarded", 3) == [b"allowed", b"allowed", b"by TLS alone"]

        cluster.reset()
        create(cluster, "guarded")
        with pytest.raises(KafkaException, match="authorization failed"):  # the ACLs are gone, too
            publish(plain, "guarded", b"refused")
    finally:
        cluster.close()


def _may_write(user: str, topic: str) -> AclBinding:
    return AclBinding(
        *(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{user}", "*"),
        *(AclOperation.WRITE, AclPermissionType.ALLOW),
    )


STARTS_AND_WAITS = """
import signal, sys
from pathlib import Path
from tests.kafka.cluster import Cluster
print(Cluster.start(Path(sys.argv[1])).node(1).pid, flush=True)
signal.pause()
"""


@pytest.mark.alone
def test_a_killed_test_run_leaves_no_node(kafka_jars: Jars, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert not is_gone(pid)
        os.kill(starter.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the node is gone")


def test_blocks_of_ports_are_never_shared() -> None:
    blocks = [Ports() for _ in range(5)]
    numbers = [number for block in blocks for number in block.numbers]
    assert len(set(numbers)) == len(numbers)
    assert not any(map(is_taken, numbers))
    for block in blocks:
        block.close()


def test_without_java_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="java is not installed"):
        jars.fetch()


@pytest.mark.parametrize(
    ("said", "why"),
    [('openjdk version "11.0.2" 2019-01-15', "needs Java 17, and this is 11"), ("Unable to locate", "does not run")],
)
def test_without_a_java_that_will_do_it_says_so(
    said: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "java").write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=why):
        jars.fetch()
