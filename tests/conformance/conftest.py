"""`broker`, and an `app` on one: each test runs against every engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.broker.port import Admin, Broker, Producer, Reader
from tests.conformance.engines import ENGINES, Engine, on_kafka
from tests.conformance.members import Member
from tests.kafka.cluster import Cluster


@pytest.fixture(params=[*ENGINES, pytest.param("kafka", marks=pytest.mark.kafka)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param != "kafka":
        return ENGINES[request.param]
    cluster: Cluster = request.getfixturevalue("kafka")
    cluster.reset()
    return on_kafka(cluster.bootstrap)


@pytest.fixture
def broker(engine: Engine, tmp_path: Path) -> Generator[Broker]:
    broker = engine.open(tmp_path)
    yield broker
    broker.close()


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Generator[TaskQ]:
    with TaskQ("test", broker=engine.url(tmp_path)) as app:
        yield app


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def producer(broker: Broker) -> Producer:
    return broker.producer()


@pytest.fixture
def reader(broker: Broker) -> Reader:
    return broker.reader()


@pytest.fixture
def admin(broker: Broker) -> Admin:
    return broker.admin()


@pytest.fixture
def join(broker: Broker) -> Generator[Callable[..., Member]]:
    """`join(group, *topics)` makes a member, which leaves at the end of the test."""
    members = []

    def join(group: str, *topics: str) -> Member:
        members.append(Member(broker.consumer(group, topics)))
        return members[-1]

    yield join
    for member in members:
        member.consumer.close()
