"""One post, two ways: publish an invocation and answer, or do all the work first.

Posting with taskq is two short steps, however many follow the author: store the post, publish one invocation. The
other way is what that replaces, kept to feel the difference: one INSERT for each follower while the person waits.
"""

from __future__ import annotations

import sqlite3
from itertools import cycle

from anyio.to_thread import run_sync

from examples.sns_feed import store
from examples.sns_feed.tasks import database, fan_out
from taskq.errors import TaskqError

TEXT_MAX = 500

SMALL_TALK = (
    "Good morning from the night train.",
    "Third coffee. The build is green.",
    "Found the bug. It was mine.",
    "Rain on the tent all night, sun now.",
    "New bread recipe: half rye, slow rise.",
    "The swifts are back!",
    "Reading about logs. They are trees, sort of.",
)


class BadText(Exception):
    """A text that can't be posted. The message is for the person who wrote it."""


class UnknownAuthor(Exception):
    """There is no user of that id."""


def clean(text: str) -> str:
    """The text as it is stored. Raises BadText."""
    text = text.replace("\r\n", "\n").replace("\0", "").strip()
    if not text:
        raise BadText("There is nothing in it yet. Write a few words, then post.")
    if len(text) > TEXT_MAX:
        raise BadText(f"That is {len(text):,} characters; a post has room for {TEXT_MAX}.")
    return text


async def post_queued(author_id: int, text: str) -> int:
    """Store a post and publish its fan-out; return its id. Raises UnknownAuthor, and TaskqError with nothing stored."""
    post_id = await run_sync(_add, author_id, text, "queued")
    try:
        await fan_out.adelay(author_id, post_id)
    except TaskqError:
        await run_sync(_withdraw, [post_id])
        raise
    return post_id


async def post_inline(author_id: int, text: str) -> int:
    """Store a post and put it into every follower's feed, one after the other; return its id. Raises UnknownAuthor."""
    return await run_sync(_post_and_deliver, author_id, text)


async def post_as_crowd(authors: list[store.User]) -> list[int]:
    """Many authors post at once: one transaction, one bulk publish. Raises TaskqError with nothing stored."""
    posts = await run_sync(_add_many, authors)
    post_ids = [post_id for _, post_id in posts]
    try:
        await fan_out.amap(posts)
    except TaskqError:
        await run_sync(_withdraw, post_ids)
        raise
    return post_ids


def _add(author_id: int, text: str, mode: store.Mode) -> int:
    try:
        with database.writing() as db:
            return store.add_post(db, author_id, text, mode)
    except sqlite3.IntegrityError as error:
        raise UnknownAuthor(author_id) from error


def _add_many(authors: list[store.User]) -> list[tuple[int, int]]:
    """Pairs of author and post, as `fan_out` takes them."""
    with database.writing() as db:
        return [
            (author.id, store.add_post(db, author.id, text, "queued"))
            for author, text in zip(authors, cycle(SMALL_TALK))
        ]


def _withdraw(post_ids: list[int]) -> None:
    with database.writing() as db:
        for post_id in post_ids:
            store.delete_post(db, post_id)


def _post_and_deliver(author_id: int, text: str) -> int:
    post_id = _add(author_id, text, "inline")
    with database.reading() as db:  # each INSERT commits by itself, as the naive application does it
        for follower_id in store.follower_ids(db, author_id):
            store.deliver(db, post_id, [follower_id])
    return post_id
