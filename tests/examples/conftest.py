"""What the example's tests share: a small database, and the site running on one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.sns_feed.database import Database
from examples.sns_feed.local import Site
from examples.sns_feed.seed import seed
from tests.examples.graphs import FOLLOWERS, star


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """User 1 with sixty followers."""
    database = Database(tmp_path / "feed.sqlite3")
    seed(database, star(FOLLOWERS))
    yield database
    database.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site with a web server and two workers, as processes; user 1 has sixty followers."""
    site = Site(tmp_path_factory.mktemp("site"), workers=2)
    seed(site.database, star(FOLLOWERS))
    with site:
        yield site
