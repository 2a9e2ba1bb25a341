"""`kafka`: a real Kafka for tests, one node for each process that runs them, emptied in 50 ms by `kafka.reset()`.

TASKQ_TEST_KAFKA_NODES=3 makes it three nodes.

Where it can't be had, what needs it is skipped or fails, as `tests.needs` says.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.kafka.cluster import Cluster
from tests.kafka.jars import Jars, Unavailable, fetch
from tests.needs import missing

FIXTURES = {"kafka_jars", "kafka", "kafka3"}
_PROBLEM = pytest.StashKey[Unavailable]()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the jars before any test's time begins to run."""
    if session.config.option.collectonly or not any(item.get_closest_marker("kafka") for item in session.items):
        return
    try:
        fetch()
    except Unavailable as problem:
        session.config.stash[_PROBLEM] = problem


@pytest.fixture(scope="session")
def kafka_jars(pytestconfig: pytest.Config) -> Jars:
    """Kafka's jars, or the end of the test if they can't be had."""
    problem = pytestconfig.stash.get(_PROBLEM, None)
    if problem is None:
        try:
            return fetch()
        except Unavailable as error:
            problem = error
    return missing(problem.need, problem.reason)


@pytest.fixture(scope="session")
def kafka(kafka_jars: Jars, tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    """One node. Others use it too: `reset()` before you look at all there is."""
    yield from _cluster(tmp_path_factory, int(os.environ.get("TASKQ_TEST_KAFKA_NODES", "1")))


@pytest.fixture(scope="module")
def kafka3(kafka_jars: Jars, tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    """Three nodes. Who kills one starts it again. Mark the test `alone`: they are three Javas.

    They end with the module, not to be beside what is measured after it.
    """
    yield from _cluster(tmp_path_factory, 3)


def _cluster(tmp_path_factory: pytest.TempPathFactory, nodes: int) -> Generator[Cluster]:
    cluster = Cluster.start(tmp_path_factory.mktemp(f"kafka{nodes}-"), nodes)
    yield cluster
    cluster.close()
