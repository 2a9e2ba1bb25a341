"""How commands show what is in records: times, keys, headers, calls.

What a log holds was written by anybody, so nothing of it reaches a terminal but as a literal, or with what is not
to be seen escaped: no control characters.
"""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import msgspec

from taskq.broker.port import Record
from taskq.errors import SerializationError
from taskq.message import JsonEnvelope, decode_envelope, decode_headers, format_id
from taskq.text import printable

_SHOWN_MAX = 300


def time_text(timestamp_ms: int) -> str:
    """A time of a record."""
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{timestamp_ms % 1000:03}Z" if timestamp_ms >= 0 else "no time"


def literal(raw: bytes) -> str:
    """Text if it is that, else bytes, as a Python literal, cut if it is long."""
    try:
        shown = ascii(raw.decode())
    except UnicodeDecodeError:
        shown = ascii(raw)
    return _cut(shown)


def _cut(shown: str) -> str:
    return shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}... ({len(shown)} characters)"


def invocation_of(value: bytes | None) -> dict[str, Any] | None:
    """What an invocation says; None if it is none."""
    try:
        envelope = decode_envelope(value)
        decode = msgspec.json.decode if isinstance(envelope, JsonEnvelope) else msgspec.msgpack.decode
        args, kwargs = decode(envelope.args), decode(envelope.kwargs)
    except (SerializationError, ValueError, TypeError, RecursionError):
        return None
    return {
        "event" if envelope.event else "task": envelope.name,
        "id": None if envelope.id is None else format_id(envelope.id),
        "args": args,
        "kwargs": kwargs,
        "signed": envelope.signature is not None,
    }


def value_text(value: bytes | None) -> str:
    """What a record's value says: the call, if it is an invocation."""
    if value is None:
        return "no value (a tombstone)"
    found = invocation_of(value)
    if found is None:
        return literal(value)
    name = found.get("task") or found.get("event") or ""
    shown = [_shown(one) for one in found["args"]] if isinstance(found["args"], list) else [_shown(found["args"])]
    if isinstance(found["kwargs"], dict):
        shown += [f"{_shown(key)[1:-1]}={_shown(one)}" for key, one in found["kwargs"].items()]
    kind = "event " if "event" in found else ""
    ident = ascii(found["id"])[1:-1] if found["id"] else "-"
    signed = "  signed" if found["signed"] else ""
    return f"{kind}{ascii(name)[1:-1]}({_cut(', '.join(shown))})  id {ident}{signed}"


def _shown(value: object) -> str:
    return _cut(ascii(value))


def record_as_json(record: Record) -> dict[str, Any]:
    """All of a record, for programs; with what it says, if it is an invocation."""
    found: dict[str, Any] = {
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "headers": decode_headers(record.headers),
        "size_bytes": 0 if record.value is None else len(record.value),
        "value_base64": None if record.value is None else b64encode(record.value).decode(),
    }
    invocation = _strict(invocation_of(record.value))
    if invocation is not None:
        found["invocation"] = invocation
    return found


def _strict(value: object) -> Any:
    """The same as JSON has it; None if it can't be had there: maps with keys that are none, numbers that are none."""
    try:
        found = msgspec.to_builtins(value, enc_hook=ascii, builtin_types=())
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return found


def first_line(text: str, characters_max: int) -> str:
    """The first line of a text, short enough for a table."""
    line = printable(text.partition("\n")[0])
    return line if len(line) <= characters_max else f"{line[: characters_max - 3]}..."


def indented(text: str, columns: int) -> str:
    """Text of several lines, the first of which stands where it is to begin."""
    first, *others = map(printable, text.rstrip("\n").split("\n"))
    return "\n".join([first, *(f"{' ' * columns}{line}".rstrip() for line in others)])
