"""Small graphs to test with."""

from __future__ import annotations

from examples.sns_feed.graph import Graph

FOLLOWERS = 60


def star(followers: int) -> Graph:
    """User 1 is followed by users 2, 3, ... and follows nobody."""
    users = range(1, followers + 2)
    return Graph({user: f"User {user}" for user in users}, [(1, user) for user in users[1:]])
