"""Up to where a partition's log is known to be sound and on stable storage: where recovery begins to scan.

A checkpoint is written after a sync, every CHECKPOINT_BYTES of log, when a segment is closed, and when a process closes
the partition. An old one is as true as a new one, only less useful, so nobody waits for its name to be durable; the
one exception is retention, which makes the new start of the log durable before it removes a file (retention.py). So
each has the start of the log as it is when it gets its name, which is under the append lock (exclusive.py).

A checkpoint that is missing or damaged costs a scan of the last segment.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from attrs import asdict, evolve, frozen

from taskq.broker.log import names
from taskq.broker.log.files import UNGUARDED, Files, read_whole, write_whole
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

    def beginning_at(self, start_offset: int) -> Checkpoint:
        """The same, of a log that begins there."""
        return evolve(self, state=evolve(self.state, start_offset=start_offset))


def write(
    files: Files, directory: str, checkpoint: Checkpoint, guard: AbstractContextManager[object] = UNGUARDED
) -> None:
    """Put `checkpoint` in the place of the one there is. See `files.write_whole`; without `guard`, hold the append lock
    of a partition that has not been deleted."""
    document = {"state": asdict(checkpoint.state), "times": list(checkpoint.times)}
    write_whole(files, names.checkpoint(directory), encode_sealed(document), guard)


def read(files: Files, directory: str) -> Checkpoint | None:
    """The checkpoint of a partition; None if there is none, or it is not sound."""
    try:
        document = decode_sealed(read_whole(files, names.checkpoint(directory)))
        return Checkpoint(HeadState(**document["state"]), Times(*document["times"]))
    except (FileNotFoundError, LookupError, TypeError):
        return None
