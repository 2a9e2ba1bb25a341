"""What every broker refuses, in the same words."""

from __future__ import annotations

from typing import Final

from taskq.broker.port import (
    COMMIT_METADATA_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    OWN_HEADERS,
    Committed,
    Headers,
    TopicPartition,
)
from taskq.errors import ConfigError, MessageTooLarge

PARTITIONS_MAX: Final = 10_000
"""Of one topic. Each is a directory and open files; Kafka's advice for a whole broker is 4,000."""


def check_size(topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> int:
    """Return the size of a message in bytes; raise MessageTooLarge if it is over the limit.

    Headers of taskq's own don't count: a message that was just small enough must still fit as a dead letter.
    """
    size = len(value or b"") + len(key or b"")
    size += sum(len(name) + len(text) for name, text in headers if not name.startswith(OWN_HEADERS))
    if size > MESSAGE_BYTES_MAX:
        raise MessageTooLarge(
            f"a message of {size} bytes for topic {topic!r}; {MESSAGE_BYTES_MAX} is the limit. "
            "Store the payload elsewhere and pass a reference to it"
        )
    return size


def check_progress(tp: TopicPartition, committed: Committed) -> None:
    """Raise ConfigError if there is more metadata than a broker must keep."""
    if len(committed.metadata) > COMMIT_METADATA_BYTES_MAX:
        raise ConfigError(
            f"{tp}: {len(committed.metadata)} bytes of commit metadata; {COMMIT_METADATA_BYTES_MAX} is the limit"
        )


def check_partitions(topic: str, partitions: int) -> None:
    """Raise ConfigError if a topic can't have so many."""
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise ConfigError(f"topic {topic!r} can't have {partitions} partitions: 1 to {PARTITIONS_MAX} can be had")
