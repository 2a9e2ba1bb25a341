"""What docs/brokers.md says that users must be allowed is enough."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from taskq.broker.kafka import KafkaBroker
from taskq.broker.port import Committed, TopicPartition
from taskq.errors import NotAuthorized
from tests.kafka.cluster import Cluster
from tests.kafka.jars import Jars
from tests.kafka.settings import USERS

ALLOWED = """
    --allow-principal User:alice --operation Describe --operation Write --operation Create --topic mail
    --allow-principal User:bob --operation Describe --operation DescribeConfigs --operation Read --operation Write
        --operation Create --topic mail --resource-pattern-type prefixed
    --allow-principal User:bob --operation Read --group mail
"""


@pytest.fixture
def cluster(kafka_jars: Jars, tmp_path: Path) -> Generator[Cluster]:
    cluster = Cluster.start(tmp_path, sasl=True)
    yield cluster
    cluster.close()


def opened(cluster: Cluster, user: str) -> KafkaBroker:
    login = f"security.protocol=SASL_PLAINTEXT&sasl.mechanism=PLAIN&sasl.username={user}&sasl.password={USERS[user]}"
    return KafkaBroker(f"kafka://{cluster.listener('SASL_PLAINTEXT')}?{login}", partitions_default=1)


def allow(cluster: Cluster, allowed: str) -> None:
    for one in allowed.strip().split("--allow-principal"):
        if one:
            cluster.tool("kafka-acls", "--add", "--allow-principal", *one.split())


@pytest.mark.timeout(120)
def test_who_publishes_and_who_works_need_no_more_than_is_said(cluster: Cluster):
    allow(cluster, ALLOWED)
    publisher, worker = opened(cluster, "alice"), opened(cluster, "bob")
    try:
        publisher.producer().send("mail", b"one")
        tp = TopicPartition("mail", 0)
        consumer = worker.consumer("mail", ["mail"])
        while not (fetched := consumer.poll(10).fetched):
            pass
        assert [record.value for record in fetched[0].records] == [b"one"]
        consumer.commit({tp: Committed(1)})
        worker.producer().send("mail.dead", b"two")
        assert [record.value for record in worker.reader().read(tp, 0)] == [b"one"]
        admin = worker.admin()
        assert admin.describe_topic("mail").settings.unfinished == "delete"
        assert admin.describe_group("mail").committed == {tp: Committed(1)}
        with pytest.raises(NotAuthorized, match="ACLs"):
            publisher.reader().read(tp, 0)
        with pytest.raises(NotAuthorized, match="ACLs"):
            publisher.producer().send("other", b"three")
    finally:
        publisher.close()
        worker.close()


@pytest.mark.timeout(120)
def test_who_may_change_settings_and_add_no_partitions_changes_nothing_of_both(cluster: Cluster):
    operations = " ".join(f"--operation {one}" for one in ("Create", "Describe", "DescribeConfigs", "AlterConfigs"))
    allow(cluster, f"--allow-principal User:bob {operations} --topic mail")
    broker = opened(cluster, "bob")
    try:
        admin = broker.admin()
        admin.create_topic("mail", 1)
        before = admin.describe_topic("mail")
        with pytest.raises(NotAuthorized, match="mail"):
            admin.alter_topic("mail", 2, retention_ms=5000)
        assert admin.describe_topic("mail") == before
        admin.alter_topic("mail", retention_ms=5000)
        assert admin.describe_topic("mail").settings.retention_ms == 5000
    finally:
        broker.close()
