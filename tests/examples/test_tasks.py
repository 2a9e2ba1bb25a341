"""What the workers run, and what a request stores and publishes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from examples.sns_feed import posting, store, tasks
from examples.sns_feed.database import Database
from taskq.errors import StorageFull
from tests.examples.graphs import FOLLOWERS


class Published:
    """Stands where a task's publishing methods are, and keeps what it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.invocations: list[tuple[Any, ...]] = []
        self._error = error

    def map(self, invocations: Sequence[tuple[Any, ...]]) -> None:
        self.invocations += invocations

    async def adelay(self, *arguments: object) -> None:
        await self.amap([arguments])

    async def amap(self, invocations: Sequence[tuple[Any, ...]]) -> None:
        if self._error is not None:
            raise self._error
        self.invocations += invocations


@pytest.fixture(autouse=True)
def of_the_tasks(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "database", database)
    monkeypatch.setattr(posting, "database", database)


@pytest.fixture
def post_id(database: Database) -> int:
    with database.writing() as db:
        return store.add_post(db, 1, "hello", "queued")


def test_a_fan_out_publishes_chunks_that_cover_every_follower_once(post_id: int, monkeypatch: pytest.MonkeyPatch):
    published = Published()
    monkeypatch.setattr(tasks, "deliver", published)
    assert tasks.fan_out(1, post_id) == FOLLOWERS
    chunks = [chunk for _, chunk in published.invocations]
    assert [len(chunk) for chunk in chunks] == [25, 25, 10]
    assert sorted(user for chunk in chunks for user in chunk) == list(range(2, 62))
    assert {post for post, _ in published.invocations} == {post_id}


def test_a_fan_out_for_nobody_publishes_nothing(post_id: int, monkeypatch: pytest.MonkeyPatch):
    published = Published()
    monkeypatch.setattr(tasks, "deliver", published)
    assert tasks.fan_out(2, post_id) == 0
    assert published.invocations == []


def test_chunks_that_come_twice_deliver_once(database: Database, post_id: int):
    chunks = [list(range(2, 32)), list(range(32, 62))]
    assert [tasks.deliver(post_id, chunk) for chunk in chunks] == [30, 30]
    assert [tasks.deliver(post_id, chunk) for chunk in chunks] == [0, 0]
    with database.reading() as db:
        post = store.find_post(db, post_id)
        assert post is not None
        assert store.delivery(db, post_id).rows == FOLLOWERS
        assert store.undelivered(db, post) == 0


@pytest.mark.anyio
async def test_a_queued_post_publishes_one_invocation(database: Database, monkeypatch: pytest.MonkeyPatch):
    published = Published()
    monkeypatch.setattr(posting, "fan_out", published)
    post_id = await posting.post_queued(1, "hello")
    assert published.invocations == [(1, post_id)]


@pytest.mark.anyio
async def test_what_can_not_be_published_is_not_posted(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posting, "fan_out", Published(StorageFull("no space left")))
    with pytest.raises(StorageFull):
        await posting.post_queued(1, "hello")
    with database.reading() as db:
        crowd = store.top_users(db, 3)
    with pytest.raises(StorageFull):
        await posting.post_as_crowd(crowd)
    with database.reading() as db:
        assert store.posts_of(db, 1, 10) == []


@pytest.mark.anyio
@pytest.mark.parametrize("post", [posting.post_queued, posting.post_inline])
async def test_nobody_can_not_post(post: Callable[[int, str], Awaitable[int]]):
    with pytest.raises(posting.UnknownAuthor):
        await post(999, "hello")
