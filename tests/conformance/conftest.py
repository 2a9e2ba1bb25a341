"""`broker`: each test runs against every engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from taskq.broker.port import Admin, Broker, Producer, Reader
from tests.conformance.engines import ENGINES, Engine
from tests.conformance.members import Member


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture
def broker(engine: Engine, tmp_path: Path) -> Generator[Broker]:
    broker = engine.open(tmp_path)
    if broker.url.startswith("kafka"):
        reset(broker)
    yield broker
    broker.close()


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


def reset(broker):
    client = broker._client()
    names = broker._topics.names()
    if names:
        for f in client.delete_topics(names).values():
            f.result()
    for g in [x.group_id for x in client.list_consumer_groups().result().valid]:
        for f in client.delete_consumer_groups([g]).values():
            try:
                f.result()
            except Exception as e:
                print(e)
    import time
    while broker._topics.names():
        time.sleep(0.02)
