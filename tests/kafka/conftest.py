"""A cluster with nothing in it, and what works on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from tests.kafka.cluster import Cluster
from tests.kafka.urls import url
from tests.processes import Bench, bench


@pytest.fixture
def empty(kafka: Cluster) -> Cluster:
    """One node, without topics and groups."""
    kafka.reset()
    return kafka


@pytest.fixture
def app(empty: Cluster) -> Iterator[TaskQ]:
    with TaskQ("test", broker=url(empty)) as app:
        yield app


@pytest.fixture
def here(empty: Cluster, tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, broker=url(empty)) as made:
        yield made


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
