"""A Kafka with passwords, ACLs and TLS: who may do what, and what those are told who may not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from taskq import TaskQ
from taskq.errors import BrokerError, BrokerUnavailable, NotAuthorized
from taskq.worker import Worker, WorkerOptions
from tests.kafka.cluster import Cluster
from tests.kafka.jars import Jars
from tests.kafka.settings import USERS
from tests.kafka.urls import url
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working

SOON_S = 8.0
ADVICE = "check the credentials, and what they allow"


@pytest.fixture(scope="module")
def guarded(kafka_jars: Jars, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster.start(tmp_path_factory.mktemp("guarded-"), sasl=True, tls=True)
    yield cluster
    cluster.close()


@pytest.fixture
def doors(guarded: Cluster) -> Cluster:
    guarded.reset()
    return guarded


def login(user: str = "alice", password: str | None = None) -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password or USERS[user],
    }


def note() -> None:
    """A task of no interest."""


def allow(cluster: Cluster, *rights: tuple[ResourceType, str, AclOperation]) -> None:
    """Give alice rights: to what begins with a name, or to the cluster."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    for kind, name, operation in rights:
        pattern = ResourcePatternType.LITERAL if kind == ResourceType.BROKER else ResourcePatternType.PREFIXED
        acl = AclBinding(kind, name, pattern, "User:alice", "*", operation, AclPermissionType.ALLOW)
        (future,) = admin.create_acls([acl]).values()
        future.result(WAIT_S)


def publish(cluster: Cluster, settings: dict[str, str], protocol: str = "SASL_PLAINTEXT") -> None:
    with TaskQ("guarded", broker=url(cluster, settings, protocol)) as app:
        app.task(topic="feed", name="note")(note).delay()


def refused(call: Callable[[], object], kind: type[BrokerError] = NotAuthorized, advice: str = ADVICE) -> str:
    """What is said, which must be soon, with advice, and without passwords."""
    began = time.monotonic()
    with pytest.raises(kind, match=advice) as told:
        call()
    assert time.monotonic() - began < SOON_S
    assert "secret" not in str(told.value)
    assert "wrong" not in str(told.value)
    return str(told.value)


def work(cluster: Cluster, topic: str = "feed") -> None:
    """A worker that is to fail, and by what."""
    with TaskQ("guarded", broker=url(cluster, login(), "SASL_PLAINTEXT")) as app:
        app.task(topic=topic, name="note")(note)
        worker = Worker(app, WorkerOptions("default"))
        assert worker.run() == 1
        assert worker._error is not None
        raise worker._error


TOPIC, GROUP, CLUSTER = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.BROKER
ALL_BUT_READING_FEED = (
    (CLUSTER, "kafka-cluster", AclOperation.CREATE),
    *((TOPIC, name, what) for name in ("default.", "__taskq.") for what in (AclOperation.READ, AclOperation.WRITE)),
    (TOPIC, "feed", AclOperation.WRITE),
    (TOPIC, "__taskq.", AclOperation.DELETE),
)
GROUPS = ((GROUP, "default", AclOperation.READ), (GROUP, "__taskq.", AclOperation.READ))


def test_a_wrong_password_is_told_soon(doors: Cluster) -> None:
    refused(lambda: publish(doors, login(password="wrong")))


def test_who_may_not_publish_is_told(doors: Cluster) -> None:
    refused(lambda: publish(doors, login()))  # it may not even see whether the topic is there
    publish(doors, login("admin"))
    allow(doors, (TOPIC, "feed", AclOperation.DESCRIBE))
    assert "publishing to topic 'feed'" in refused(lambda: publish(doors, login()))
    allow(doors, (TOPIC, "feed", AclOperation.WRITE))
    publish(doors, login())


def test_who_goes_on_publishing_where_it_may_not_is_told_each_time(doors: Cluster) -> None:
    """Not being allowed anything ends librdkafka's producer for good: there is another then."""
    publish(doors, login("admin"))
    allow(doors, (TOPIC, "feed", AclOperation.DESCRIBE))
    with TaskQ("guarded", broker=url(doors, login(), "SASL_PLAINTEXT")) as app:
        task = app.task(topic="feed", name="note")(note)
        for _ in range(3):
            refused(task.delay)
        allow(doors, (TOPIC, "feed", AclOperation.WRITE))
        task.delay()


def test_who_may_not_create_topics_is_told(doors: Cluster) -> None:
    allow(doors, (TOPIC, "feed", AclOperation.WRITE))
    assert "creating topic 'feed'" in refused(lambda: publish(doors, login()))


def test_a_worker_that_may_not_join_its_group_ends_and_says_so(doors: Cluster) -> None:
    publish(doors, login("admin"))
    allow(doors, *ALL_BUT_READING_FEED)
    told = refused(lambda: work(doors))
    assert "Group authorization failed" in told
    assert told.startswith(("group default,", "group __taskq.delays,"))  # whichever was asked to join first


def test_a_worker_that_may_not_read_ends_and_says_so(doors: Cluster) -> None:
    publish(doors, login("admin"))
    allow(doors, *ALL_BUT_READING_FEED, *GROUPS)
    refused(lambda: work(doors))


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_who_may_do_all_works(doors: Cluster, protocol: str) -> None:
    allow(doors, *ALL_BUT_READING_FEED, *GROUPS, (TOPIC, "feed", AclOperation.READ))
    trust = {"ssl.ca.location": str(doors.authority)} if protocol == "SASL_SSL" else {}
    ran: list[int] = []
    with TaskQ("guarded", broker=url(doors, login() | trust | {"security.protocol": protocol}, protocol)) as app:

        @app.task(topic="feed")
        def tell(number: int) -> None:
            ran.append(number)

        tell.map([(number,) for number in range(100)])
        with working(app) as worker:
            wait_until(lambda: len(ran) == 100, "all have run")
            wait_finished(worker)


def test_tls_by_the_url(doors: Cluster) -> None:
    publish(doors, {"security.protocol": "SSL", "ssl.ca.location": str(doors.authority)}, "SSL")
    assert "certificate" in refused(lambda: publish(doors, {"security.protocol": "SSL"}, "SSL"))


def test_without_tls_where_it_is_needed(doors: Cluster) -> None:
    """Nobody answers then: librdkafka can't know why."""
    settings = {"socket.timeout.ms": "2000"}
    refused(lambda: publish(doors, settings, "SSL"), BrokerUnavailable, "check that the brokers run")
