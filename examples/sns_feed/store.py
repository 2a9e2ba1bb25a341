"""What the pages and the tasks ask of the database: one function for each question. Times are Unix milliseconds."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from attrs import frozen

Mode = Literal["queued", "inline"]
"""How a post reached its followers: through taskq, or by INSERTs inside the request."""

FEED_LENGTH = 50


@frozen
class User:
    id: int
    name: str
    followers: int


@frozen
class Post:
    id: int
    author: User
    text: str
    mode: Mode
    created_at_ms: int
    answer_us: int | None
    """How long the request took to answer; None until that has been stored."""


@frozen
class FeedRow:
    id: int
    post: Post


@frozen
class Delivery:
    """How far a post has come into the feeds of its author's followers."""

    rows: int
    last_at_ms: int | None


@frozen
class Totals:
    users: int
    follows: int


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _users(rows: Iterable[Sequence[Any]]) -> list[User]:
    return [User(*row) for row in rows]


def _post(row: Sequence[Any]) -> Post:
    """A post from a row of the view `posts_with_authors`."""
    post_id, text, mode, created_at_ms, answer_us, *author = row
    return Post(post_id, User(*author), text, mode, created_at_ms, answer_us)


def _feed_rows(rows: Iterable[Sequence[Any]]) -> list[FeedRow]:
    return [FeedRow(row_id, _post(post)) for row_id, *post in rows]


def totals(db: sqlite3.Connection) -> Totals:
    return Totals(*db.execute("SELECT count(*), coalesce(sum(followers), 0) FROM users").fetchone())


def top_users(db: sqlite3.Connection, limit: int) -> list[User]:
    sql = "SELECT id, name, followers FROM users ORDER BY followers DESC, id LIMIT ?"
    return _users(db.execute(sql, (limit,)))


def least_followed(db: sqlite3.Connection) -> User:
    return User(*db.execute("SELECT id, name, followers FROM users ORDER BY followers, id LIMIT 1").fetchone())


def find_user(db: sqlite3.Connection, user_id: int) -> User | None:
    found = _users(db.execute("SELECT id, name, followers FROM users WHERE id = ?", (user_id,)))
    return found[0] if found else None


def search_users(db: sqlite3.Connection, words: str, limit: int) -> list[User]:
    """Users with that number or those letters in their name, most followed first."""
    pattern = "%" + words.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
    sql = r"""SELECT id, name, followers FROM users WHERE id = ? OR name LIKE ? ESCAPE '\'
        ORDER BY followers DESC, id LIMIT ?"""
    return _users(db.execute(sql, (words, pattern, limit)))


def follower_ids(db: sqlite3.Connection, author_id: int) -> list[int]:
    return [row[0] for row in db.execute("SELECT follower_id FROM follows WHERE author_id = ?", (author_id,))]


def followers(db: sqlite3.Connection, author_id: int, limit: int) -> list[User]:
    """Some of an author's followers."""
    sql = """SELECT id, name, followers FROM users
        WHERE id IN (SELECT follower_id FROM follows WHERE author_id = ? LIMIT ?)"""
    return _users(db.execute(sql, (author_id, limit)))


def following(db: sqlite3.Connection, user_id: int, limit: int) -> list[User]:
    """Whom a user follows, most followed first."""
    sql = """SELECT id, name, followers FROM users
        WHERE id IN (SELECT author_id FROM follows WHERE follower_id = ?) ORDER BY followers DESC LIMIT ?"""
    return _users(db.execute(sql, (user_id, limit)))


def add_post(db: sqlite3.Connection, author_id: int, text: str, mode: Mode) -> int:
    """Store a post; return its id. Raises sqlite3.IntegrityError if there is no such author."""
    sql = "INSERT INTO posts (author_id, text, mode, created_at_ms) VALUES (?, ?, ?, ?) RETURNING id"
    post_id: int = db.execute(sql, (author_id, text, mode, now_ms())).fetchone()[0]
    return post_id


def delete_post(db: sqlite3.Connection, post_id: int) -> None:
    db.execute("DELETE FROM posts WHERE id = ?", (post_id,))


def set_answer_time(db: sqlite3.Connection, post_ids: Iterable[int], answer_us: int) -> None:
    """Store how long the request that made these posts took."""
    db.executemany("UPDATE posts SET answer_us = ? WHERE id = ?", [(answer_us, post_id) for post_id in post_ids])


def find_post(db: sqlite3.Connection, post_id: int) -> Post | None:
    row = db.execute("SELECT * FROM posts_with_authors WHERE id = ?", (post_id,)).fetchone()
    return None if row is None else _post(row)


def posts_of(db: sqlite3.Connection, author_id: int, limit: int) -> list[Post]:
    """An author's posts, newest first."""
    sql = "SELECT * FROM posts_with_authors WHERE author_id = ? ORDER BY id DESC LIMIT ?"
    return [_post(row) for row in db.execute(sql, (author_id, limit))]


def latest_answered(db: sqlite3.Connection, author_id: int, mode: Mode) -> Post | None:
    """The author's newest post of that mode whose answer time is known."""
    sql = """SELECT * FROM posts_with_authors WHERE author_id = ? AND mode = ? AND answer_us IS NOT NULL
        ORDER BY id DESC LIMIT 1"""
    row = db.execute(sql, (author_id, mode)).fetchone()
    return None if row is None else _post(row)


def feed(db: sqlite3.Connection, user_id: int) -> list[FeedRow]:
    """What a user reads, newest post first."""
    sql = """SELECT feeds.id, post.* FROM feeds JOIN posts_with_authors AS post ON post.id = post_id
        WHERE user_id = ? ORDER BY post_id DESC LIMIT ?"""
    return _feed_rows(db.execute(sql, (user_id, FEED_LENGTH)))


def last_feed_row(db: sqlite3.Connection, user_id: int) -> int:
    """The id of the row that came into a user's feed last; 0 for an empty feed."""
    row_id: int = db.execute("SELECT coalesce(max(id), 0) FROM feeds WHERE user_id = ?", (user_id,)).fetchone()[0]
    return row_id


def feed_since(db: sqlite3.Connection, user_id: int, row_id: int) -> list[FeedRow]:
    """What came into a user's feed after that row, in the order it came."""
    # The + keeps SQLite from walking all newer rows, everybody's, instead of this user's index.
    sql = """SELECT feeds.id, post.* FROM feeds JOIN posts_with_authors AS post ON post.id = post_id
        WHERE user_id = ? AND +feeds.id > ? ORDER BY feeds.id"""
    return _feed_rows(db.execute(sql, (user_id, row_id)))


def deliver(db: sqlite3.Connection, post_id: int, user_ids: Iterable[int]) -> int:
    """Put a post into feeds; return how many did not have it yet."""
    sql = "INSERT OR IGNORE INTO feeds (user_id, post_id, delivered_at_ms) VALUES (?, ?, ?)"
    at_ms = now_ms()
    return db.executemany(sql, [(user_id, post_id, at_ms) for user_id in user_ids]).rowcount


def delivery(db: sqlite3.Connection, post_id: int) -> Delivery:
    sql = "SELECT count(*), max(delivered_at_ms) FROM feeds WHERE post_id = ?"
    return Delivery(*db.execute(sql, (post_id,)).fetchone())


def undelivered(db: sqlite3.Connection, post: Post) -> int:
    """How many of the author's followers don't have the post yet."""
    sql = """SELECT count(*) FROM follows WHERE author_id = ?
        AND NOT EXISTS (SELECT 1 FROM feeds WHERE user_id = follower_id AND post_id = ?)"""
    count: int = db.execute(sql, (post.author.id, post.id)).fetchone()[0]
    return count
