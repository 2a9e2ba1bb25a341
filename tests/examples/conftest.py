"""What the example's tests share: small databases, and the running site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.sns_feed.database import Database
from examples.sns_feed.graph import Graph
from examples.sns_feed.seed import seed


def star(followers: int) -> Graph:
    """User 1 is followed by users 2, 3, ... and follows nobody."""
    users = range(1, followers + 2)
    return Graph({user: f"User {user}" for user in users}, [(1, user) for user in users[1:]])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """User 1 with sixty followers."""
    database = Database(tmp_path / "feed.sqlite3")
    seed(database, star(60))
    yield database
    database.close()
