"""The database keeps its promises to threads and processes; the store answers its questions."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.sns_feed import store
from examples.sns_feed.database import Database, DatabaseMissing
from examples.sns_feed.seed import seed
from tests.examples.graphs import star


def test_seeding_counts_followers(database: Database):
    with database.reading() as db:
        assert store.totals(db) == store.Totals(users=61, follows=60)
        assert store.top_users(db, 2) == [store.User(1, "User 1", 60), store.User(2, "User 2", 0)]
        assert store.least_followed(db) == store.User(2, "User 2", 0)
        assert store.follower_ids(db, 1) == list(range(2, 62))
        assert store.following(db, 7, 5) == [store.User(1, "User 1", 60)]
        assert [user.id for user in store.followers(db, 1, 3)] == [2, 3, 4]


def test_a_database_is_never_seeded_over(database: Database):
    with pytest.raises(FileExistsError):
        seed(database, star(1))


def test_a_missing_database_is_told_and_not_made(tmp_path: Path):
    database = Database(tmp_path / "nowhere.sqlite3")
    with pytest.raises(DatabaseMissing, match=r"nowhere\.sqlite3.*seed"), database.reading():
        pass
    assert not database.path.exists()


def test_the_database_is_in_wal_mode_with_keys_enforced(database: Database):
    with database.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(sqlite3.IntegrityError), database.writing() as db:
        store.add_post(db, 999, "by nobody", "queued")


def test_writing_is_all_or_nothing(database: Database):
    def fail_halfway() -> None:
        with database.writing() as db:
            store.add_post(db, 1, "half a thought", "queued")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    with database.reading() as db:
        assert store.posts_of(db, 1, 10) == []


def test_many_threads_write_at_once(database: Database):
    together = threading.Barrier(8)

    def post(number: int) -> int:
        together.wait(10)
        with database.writing() as db:
            return store.add_post(db, 1, f"number {number}", "queued")

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(post, range(8))) == list(range(1, 9))


def test_delivering_again_adds_nothing(database: Database):
    with database.writing() as db:
        post_id = store.add_post(db, 1, "hello", "queued")
        assert store.deliver(db, post_id, [2, 3, 4]) == 3
        assert store.deliver(db, post_id, [3, 4, 5]) == 1
        assert store.delivery(db, post_id).rows == 4
        post = store.find_post(db, post_id)
        assert post is not None
        assert store.undelivered(db, post) == 56


def test_a_feed_is_newest_post_first_and_resumes_in_the_order_of_arrival(database: Database):
    with database.writing() as db:
        first, second = (store.add_post(db, 1, text, "queued") for text in ("first", "second"))
        store.deliver(db, second, [2])
        seen = store.last_feed_row(db, 2)
        store.deliver(db, first, [2, 3])  # the older post comes later, as it may with many workers
        assert [row.post.text for row in store.feed(db, 2)] == ["second", "first"]
        assert [row.post.text for row in store.feed_since(db, 2, seen)] == ["first"]
        assert store.feed_since(db, 2, store.last_feed_row(db, 2)) == []


def test_people_are_found_by_number_and_by_letters_taken_as_they_are(database: Database):
    with database.reading() as db:
        assert [user.id for user in store.search_users(db, "42", 5)] == [42]
        assert [user.id for user in store.search_users(db, "user 6", 5)] == [6, 60, 61]
        assert store.search_users(db, "%", 5) == []
        assert store.search_users(db, "' OR 1=1 --", 5) == []


def test_the_latest_answered_post_of_a_mode_is_found(database: Database):
    with database.writing() as db:
        posts = [store.add_post(db, 1, text, "inline") for text in ("answered", "not yet")]
        store.set_answer_time(db, posts[:1], 1234)
        found = store.latest_answered(db, 1, "inline")
        assert found is not None
        assert (found.text, found.answer_us) == ("answered", 1234)
        assert store.latest_answered(db, 1, "queued") is None
