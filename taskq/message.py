"""An invocation as the value of a record, and back.

A value is a MessagePack map with these fields, or the same as a JSON object, which anything that can write to the log
may send (`{"task": "feed.fan_out", "args": [1, 2]}`):

    task       name of the task to run; or instead
    event      name of the event that happened, for the handlers of every group that subscribed to it
    id         16 bytes, a UUID, or that as text (which is the same id); or a string of the sender's choice; if left
               out, derived from the record's place
    args       array of positional arguments, left out when empty
    kwargs     map of keyword arguments, left out when empty
    signature  of a pickled call only (`taskq.serializers`)

A field that is not one of these makes the value unreadable: it would change what the invocation means, and a worker
that doesn't know it must not run it as if it were not there. What may be ignored goes into the record's headers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import count
from time import time_ns
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from taskq.broker.port import Headers
from taskq.errors import ConfigError, SerializationError

ID_CHARACTERS_MAX = 255
_UUID_CHARACTERS = 36
RESERVED_HEADER_PREFIX = "taskq-"

Id = bytes | str
"""An invocation's id as it travels: the 16 bytes of a UUID, or the string that the sender chose."""


EMPTY_ARRAY = Raw(b"\x90")
EMPTY_MAP = Raw(b"\x80")


class Envelope(Struct, gc=False, forbid_unknown_fields=True):
    """What a value says, with the arguments still encoded: only their task knows their types.

    A struct that the garbage collector need not watch, because a worker makes one for every invocation.
    """

    name: str = msgspec.field(default="", name="task")
    """Of the task, or of the event."""
    id: Any = None
    """An `Id`, or None when the sender gave none."""
    args: Raw = EMPTY_ARRAY
    kwargs: Raw = EMPTY_MAP
    event: str = ""
    """Empty unless this is an event."""
    signature: bytes | None = None


class JsonEnvelope(Envelope, gc=False, forbid_unknown_fields=True):
    """The same from a JSON object: `args` and `kwargs` are JSON."""

    args: Raw = Raw(b"[]")
    kwargs: Raw = Raw(b"{}")


_decode_msgpack = msgspec.msgpack.Decoder(Envelope).decode
_decode_json = msgspec.json.Decoder(JsonEnvelope).decode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_UNREADABLE = (ValueError, TypeError, RecursionError)


def decode_envelope(value: bytes | memoryview | None) -> Envelope:
    """Read a record's value. Raises SerializationError if it is not an invocation."""
    try:
        envelope: Envelope = _decode_msgpack(value)  # type: ignore[arg-type]
    except _UNREADABLE as error:
        envelope = _decode_other(value, error)
    if not envelope.name or envelope.event:
        _name_event(envelope)
    ident = envelope.id
    if ident.__class__ is not bytes or len(ident) != 16:
        envelope.id = _received_id(ident)
    return envelope


def _decode_other(value: bytes | memoryview | None, error: Exception) -> Envelope:
    try:
        # As MessagePack a brace is the number 123, which is no invocation.
        if value and value[0] == ord("{"):
            return _decode_json(value)
    except _UNREADABLE as json_error:
        error = json_error
    reason = str(error) if value else "it is empty"
    raise SerializationError(f"the record's value is not an invocation: {reason}") from error


def encode_msgpack(
    kind: str, name: str, ident: Id, args: Raw, kwargs: Raw = EMPTY_MAP, signature: bytes | None = None
) -> bytes:
    """Write a value. `kind` is "task" or "event". `msgpack_head` is for those who do so often."""
    return _encode_msgpack(_fields(kind, name, ident, args, kwargs, signature))


def encode_json(kind: str, name: str, ident: Id, args: Raw, kwargs: Raw = EMPTY_MAP) -> bytes:
    """Write a value as JSON. `kind` is "task" or "event"."""
    return _encode_json(_fields(kind, name, format_id(ident), args, kwargs, None))


MSGPACK_ARGS = _encode_msgpack("args")


def msgpack_head(kind: str, name: str) -> bytes:
    """Return what is the same in all values with a UUID and positional arguments: `head + id + MSGPACK_ARGS + args`."""
    return b"\x83" + _encode_msgpack(kind) + _encode_msgpack(name) + _encode_msgpack("id") + b"\xc4\x10"


def _fields(kind: str, name: str, ident: Id, args: Raw, kwargs: Raw, signature: bytes | None) -> dict[str, Any]:
    fields: dict[str, Any] = {kind: name, "id": ident, "args": args}
    if kwargs is not EMPTY_MAP:
        fields["kwargs"] = kwargs
    if signature is not None:
        fields["signature"] = signature
    return fields


def _name_event(envelope: Envelope) -> None:
    if not envelope.event:
        raise SerializationError("the record's value names neither a task nor an event")
    if envelope.name:
        raise SerializationError("the record's value names both a task and an event")
    envelope.name = envelope.event


def _received_id(ident: object) -> Id | None:
    """The id as all others have it: JSON has only text, and a UUID by any other way is 16 bytes."""
    if ident is None:
        return None
    if not isinstance(ident, str) or not 0 < len(ident) <= ID_CHARACTERS_MAX:
        raise SerializationError(f"the invocation's id is neither 16 bytes nor 1 to {ID_CHARACTERS_MAX} characters")
    return _shortest_id(ident)


# --- ids


def new_id() -> bytes:
    """Return a new UUIDv7: the milliseconds since 1970, then 74 bits that no other id of that millisecond has.

    Those bits start at a random number in every process and count up (RFC 9562, 6.2, method 2): as unlikely to meet
    those of another process as if each were drawn, and cheaper.
    """
    return ((time_ns() // 1_000_000 << 80) + _next_low_bits()).to_bytes(16, "big")


def format_id(ident: Id) -> str:
    """Return the id as people see it."""
    return str(UUID(bytes=ident)) if isinstance(ident, bytes) else ident


def parse_id(text: object) -> Id:
    """Return an id that somebody chose as it travels. Raises ConfigError."""
    if isinstance(text, UUID):
        return text.bytes
    if not isinstance(text, str) or not 0 < len(text) <= ID_CHARACTERS_MAX or not _is_encodable(text):
        raise ConfigError(f"{text!r} can't be an id: use a string of 1 to {ID_CHARACTERS_MAX} characters, or a UUID")
    return _shortest_id(text)


def _shortest_id(text: str) -> Id:
    """The 16 bytes of a UUID that is written as `format_id` writes it; any other text as it is."""
    if len(text) != _UUID_CHARACTERS:
        return text
    try:
        ident = UUID(text)
    except ValueError:
        return text
    return ident.bytes if str(ident) == text else text


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def derive_id(topic: str, partition: int, offset: int) -> bytes:
    """Return the id of an invocation that came without: the same each time its record is read. A UUIDv8."""
    from hashlib import sha256

    digest = bytearray(sha256(f"{topic}/{partition}/{offset}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)


_next_low_bits: Callable[[], int]


def _seed_ids() -> None:
    global _next_low_bits
    # Version 7, 12 random bits, variant 2, and 62 bits of which the first is 0, so that counting never spills over.
    random = int.from_bytes(os.urandom(10), "big")
    _next_low_bits = count(7 << 76 | random >> 68 << 64 | 2 << 62 | random & (1 << 61) - 1).__next__


_seed_ids()
os.register_at_fork(after_in_child=_seed_ids)


# --- headers


def encode_headers(headers: object) -> Headers:
    """Return what a user calls headers as those of a record. Raises ConfigError."""
    if not isinstance(headers, Mapping):
        raise ConfigError(f"{headers!r} is not a mapping of headers")
    encoded = []
    for name, value in headers.items():
        if not isinstance(name, str) or not name or not isinstance(value, str | bytes):
            raise ConfigError(f"header {name!r}: {value!r} is not a name and a string or bytes")
        if name.startswith(RESERVED_HEADER_PREFIX):
            raise ConfigError(f"header {name!r}: names with {RESERVED_HEADER_PREFIX!r} are taskq's own")
        encoded.append((name, value.encode("utf-8", "replace") if isinstance(value, str) else value))
    return tuple(encoded)


def decode_headers(headers: Headers) -> dict[str, str]:
    """Return a record's headers as text; what is not UTF-8 has the replacement character. The last of a name counts."""
    return {name: value.decode("utf-8", "replace") for name, value in headers}
