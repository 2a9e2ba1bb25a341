"""Up to where a partition's log is known to be sound and on stable storage: where recovery begins to scan.

A checkpoint is written after a sync, every CHECKPOINT_BYTES of log, when a segment is closed, and when a process closes
the partition. An old one is as true as a new one, only less useful, so nobody waits for its name to be durable; the
one exception is retention, which makes the new start of the log durable before it removes a file (retention.py).

A checkpoint that is missing or damaged costs a scan of the last segment.
"""

from __future__ import annotations

from attrs import asdict, frozen

from taskq.broker.log import names
from taskq.broker.log.files import Files, read_whole, write_whole
from taskq.broker.log.head import HeadState, Times
from taskq.broker.log.sealed import decode_sealed, encode_sealed

CHECKPOINT_BYTES = 16 * 1024 * 1024
"""How much of a log may have to be scanned after a reboot: a fifth of a second's work."""


@frozen
class Checkpoint:
    """Everything before byte `state.position` of segment `state.segment_base` is sound and on stable storage, and its
    indexes are too."""

    state: HeadState
    times: Times


def write(files: Files, directory: str, checkpoint: Checkpoint) -> None:
    """Put `checkpoint` in the place of the one there is."""
    document = {"state": asdict(checkpoint.state), "times": list(checkpoint.times)}
    write_whole(files, names.checkpoint(directory), encode_sealed(document))


def read(files: Files, directory: str) -> Checkpoint | None:
    """The checkpoint of a partition; None if there is none, or it is not sound."""
    try:
        document = decode_sealed(read_whole(files, names.checkpoint(directory)))
        return Checkpoint(HeadState(**document["state"]), Times(*document["times"]))
    except (FileNotFoundError, LookupError, TypeError):
        return None
