"""What happens after the page has answered: `taskq worker -g feed -A examples.sns_feed.tasks`.

A post becomes one invocation of `fan_out`, which becomes one of `deliver` for every CHUNK followers: small enough that
all workers get some, large enough to be worth a commit. An invocation may run twice (a worker was killed before it
could say that it had finished); the unique key of `feeds` makes the second run add nothing.
"""

from __future__ import annotations

from examples.sns_feed import store
from examples.sns_feed.database import Database, database_path
from taskq import task

CHUNK = 25

database = Database(database_path())


@task(topic="feed", group="feed")
def fan_out(author_id: int, post_id: int) -> int:
    """Publish the deliveries of one post; return how many followers it is for."""
    with database.reading() as db:
        followers = store.follower_ids(db, author_id)
    deliver.map([(post_id, followers[start : start + CHUNK]) for start in range(0, len(followers), CHUNK)])
    return len(followers)


@task(topic="feed", group="feed")
def deliver(post_id: int, follower_ids: list[int]) -> int:
    """Put a post into some followers' feeds; return how many did not have it yet."""
    with database.writing() as db:
        return store.deliver(db, post_id, follower_ids)
