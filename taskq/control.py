"""What workers are told by way of the log: so far, which invocations are cancelled.

One topic with one partition (`__taskq.control`), which every worker reads from its start and then follows; what is
older than 30 days is forgotten. A record's key is the id of an invocation as it travels, its value says what to do.
"""

from __future__ import annotations

from typing import Final

from taskq.broker.port import Message, Record
from taskq.message import Id

CANCEL: Final = b"cancel"
_TEXT: Final = b"id:"
"""Before an id that is text, so that one of 16 characters is not taken for a UUID."""


def cancellation(ident: Id) -> Message:
    """What to publish to the control topic."""
    return Message(CANCEL, ident if isinstance(ident, bytes) else _TEXT + ident.encode())


def cancelled_by(record: Record) -> Id | None:
    """The invocation that a record of the control topic cancels; None if it says something else."""
    key = record.key
    if record.value != CANCEL or not key:
        return None
    if key.startswith(_TEXT):
        return key[len(_TEXT) :].decode(errors="replace")
    return key if len(key) == 16 else None
