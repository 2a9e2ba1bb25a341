"""The SQLite database: its schema, and connections that many threads and processes use at once.

WAL mode lets readers go on while one process writes. Writers take turns: within a process at a lock, because
SQLite's own way to wait (sleep, look again) is neither quick nor fair; between processes at SQLite's lock, for up to
BUSY_TIMEOUT_MS. `synchronous=NORMAL` does not fsync each commit: a power cut may take the last of them, a crash of a
process none.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_TIMEOUT_MS = 30_000
DATABASE_VARIABLE = "SNS_FEED_DB"
DATABASE_DEFAULT = "sns_feed.sqlite3"

TABLES = """
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    followers INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE follows (
    author_id INTEGER NOT NULL REFERENCES users,
    follower_id INTEGER NOT NULL REFERENCES users,
    PRIMARY KEY (author_id, follower_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE posts (
    id INTEGER PRIMARY KEY,
    author_id INTEGER NOT NULL REFERENCES users,
    text TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('queued', 'inline')),
    created_at_ms INTEGER NOT NULL,
    answer_us INTEGER
) STRICT;

-- The unique key is what makes delivering idempotent: a row that is there already is left alone.
-- The id grows in the order of commits, so "everything after id 41" misses nothing: the live feed resumes from it.
CREATE TABLE feeds (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users,
    post_id INTEGER NOT NULL REFERENCES posts,
    delivered_at_ms INTEGER NOT NULL,
    UNIQUE (user_id, post_id)
) STRICT;

CREATE VIEW posts_with_authors AS
    SELECT posts.id, text, mode, created_at_ms, answer_us, author_id, name AS author_name, followers AS author_followers
    FROM posts JOIN users ON users.id = author_id;
"""

INDEXES = (
    "CREATE INDEX users_by_followers ON users (followers DESC)",
    "CREATE INDEX follows_by_follower ON follows (follower_id)",
    "CREATE INDEX posts_by_author ON posts (author_id)",
    "CREATE INDEX feeds_by_post ON feeds (post_id, delivered_at_ms)",
)
"""Made after the tables are filled: sorting once is several times quicker than keeping them sorted for each row."""


class DatabaseMissing(Exception):
    """There is no database where the configuration says. Seed one first."""


def database_path() -> Path:
    """Where the database is: SNS_FEED_DB, or a file in the current folder."""
    return Path(os.environ.get(DATABASE_VARIABLE, DATABASE_DEFAULT)).absolute()


class Database:
    """Connections to one database file, opened when first needed and kept for reuse. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # A connection is in this list, or in the hands of one thread. Appending and popping are atomic.
        self._idle: list[sqlite3.Connection] = []
        self._writing = threading.Lock()

    def create(self) -> None:
        """Make a new database with empty tables; INDEXES come after filling them. Raises FileExistsError."""
        self.path.touch(mode=0o600, exist_ok=False)
        with self.reading() as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # kept in the file: every later connection uses it
            connection.executescript(TABLES)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread in which each statement is its own transaction."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread in one write transaction: committed at the end, rolled back on an error."""
        with self._writing, self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close idle connections. The database may be used again afterwards."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        return self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            # mode=rw: connecting to a wrong path must not make an empty database there.
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            how = f"make one with `python -m examples.sns_feed.seed`, or set {DATABASE_VARIABLE}"
            raise DatabaseMissing(f"no database at {self.path}: {how}") from error
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection
