"""Many messages published at once: which go to which partition, and which of those make a batch. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskq.broker.limits import check_size
from taskq.broker.partitioner import Spread, partition_for_key
from taskq.broker.port import MESSAGE_BYTES_MAX, Message

_BATCH_BYTES_MAX = 256 * 1024  # a reader takes at least a whole batch, so this bounds its memory
_BATCH_RECORDS_MAX = 1000


def share(messages: Sequence[Message], spread: Spread, partitions: int) -> list[tuple[int, Sequence[Message]]]:
    """Which messages go to which of the `partitions`."""
    if all(key is None for _, key, _ in messages):
        return [(number, messages[part.start : part.stop]) for number, part in spread.split(len(messages))]
    by_partition: dict[int, list[Message]] = {}
    for message in messages:
        key = message.key
        number = spread.next() if key is None else partition_for_key(key, partitions)
        by_partition.setdefault(number, []).append(message)
    return list(by_partition.items())


def cut(topic: str, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cut `messages` into batches of bounded size. Raises MessageTooLarge."""
    start = size = 0
    for index, (value, key, headers) in enumerate(messages):
        length = 0 if value is None else len(value)
        if length > MESSAGE_BYTES_MAX or key is not None or headers:
            check_size(topic, value, key, headers)
            # Our own headers, which the limit leaves out, take room in a batch as all do.
            length += len(key or b"") + sum(len(name) + len(text) for name, text in headers)
        if index > start and (size + length > _BATCH_BYTES_MAX or index - start == _BATCH_RECORDS_MAX):
            yield messages[start:index]
            start, size = index, 0
        size += length
    if messages:
        yield messages[start:]
