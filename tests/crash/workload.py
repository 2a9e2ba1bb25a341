"""What the processes write that are to be killed: a function of the seed.

So whoever checks knows every byte, and need only be told how far each writer came.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator
from random import Random

from attrs import frozen

from taskq.broker import embedded
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import Files, RealFiles
from taskq.broker.port import COMMIT_METADATA_BYTES_MAX, Message, TopicPartition
from taskq.config import Durability
from taskq.topics import TopicConfig

SEGMENT_BYTES = 24 * 1024
"""So small that segments are begun all the time, and killed while they are."""

TOPICS = {"single": 1, "double": 2}
MADE_PARTITIONS = 2
_MADE_MAX = 50
GROUPS = ("feed", "search")
DURABILITIES = (Durability("fsync"), Durability("interval", 5), Durability("os"))

_SIZES = (0, 10, 100, 100, 200, 500, 5000)
_SIZE_LARGE = 200_000  # writing it takes long enough to be killed in the middle
_CRC_BYTES = 4


def open_broker(
    root: str,
    durability: Durability = DURABILITIES[2],
    segment_bytes: int = SEGMENT_BYTES,
    files: Files | None = None,
) -> EmbeddedBroker:
    """The broker under test, its segments small. With `files`, in a process of its own: it changes the module."""
    if files is not None:
        vars(embedded)["RealFiles"] = lambda **_: files
    counts = TOPICS | {f"made-{number}": MADE_PARTITIONS for number in range(_MADE_MAX)}
    topics = {topic: TopicConfig(count, {"segment_bytes": segment_bytes}) for topic, count in counts.items()}
    return EmbeddedBroker(root, durability=durability, topics=topics)


class DoomedFiles(RealFiles):
    """Its process is killed in the `calls`-th write, in the middle or right after it, where a kill from outside hardly
    ever hits, since a write takes a millionth of a second."""

    def __init__(self, calls: int, share: float) -> None:
        super().__init__()
        self._left = calls
        self._share = share

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        self._left -= 1
        if self._left < 0:
            os.pwrite(fd, data[: int(len(data) * self._share)], position)
            os.kill(os.getpid(), signal.SIGKILL)
        return os.pwrite(fd, data, position)


def doom(seed: str, writer: int) -> DoomedFiles | None:
    """What this writer dies of, if not of its parent."""
    rng = Random(f"{seed}/{writer}/doom")
    return DoomedFiles(rng.randrange(300), rng.choice((0.3, 0.9, 1.0))) if rng.random() < 0.5 else None


@frozen
class Op:
    """One call of a writer: `send` of one message, or `send_many`."""

    topic: str
    messages: tuple[Message, ...]
    first: int
    """Number of its first message: a writer counts them."""
    in_bulk: bool


def operations(seed: str, writer: int) -> Iterator[Op]:
    """What this writer does, without end."""
    rng = Random(f"{seed}/{writer}")
    number = 0
    while True:
        topic = rng.choice(("single", "single", "double", "double", f"made-{writer // 6}"))
        in_bulk = rng.random() < 0.15
        messages: list[Message] = []
        for _ in range(rng.randint(1, 40) if in_bulk else 1):
            # In bulk all have keys if there are several partitions: then it is known which belong together.
            has_key = topic != "single" if in_bulk else rng.random() < 0.4
            # What is sent in bulk to one partition is one batch, so all of it must fit into 256 KiB.
            size = _SIZE_LARGE if not in_bulk and rng.random() < 0.01 else rng.choice(_SIZES)
            headers = (("h", rng.randbytes(3)),) if rng.random() < 0.1 else ()
            value = _seal(f"{writer}.{number + len(messages)}.".encode() + rng.randbytes(size))
            messages.append(Message(value, rng.randbytes(2) if has_key else None, headers))
        yield Op(topic, tuple(messages), number, in_bulk)
        number += len(messages)


def _seal(value: bytes) -> bytes:
    return value + zlib.crc32(value).to_bytes(_CRC_BYTES, "big")


def is_sealed(value: bytes | None) -> bool:
    """Whether it is something a writer wrote, whole: for readers, which have no time to look it up."""
    return value is not None and _seal(value[:-_CRC_BYTES]) == value


def origin(value: bytes) -> tuple[int, int]:
    """Writer and number of a value."""
    writer, number, _ = value.split(b".", 2)
    return int(writer), int(number)


def metadata_of(group: str, tp: TopicPartition, offset: int) -> bytes:
    """What members commit with an offset: a torn or mixed-up commit does not fit."""
    rng = Random(f"{group}/{tp}/{offset}")
    return rng.randbytes(rng.choice((0, 1, 50, COMMIT_METADATA_BYTES_MAX))) if offset else b""
