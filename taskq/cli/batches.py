"""How `taskq log dump` prints batches and records: lines for people, an array of JSON for programs.

What a log holds was written by anybody, so nothing of it reaches a terminal but as a literal: no control characters.
"""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any, Self

import click
import msgspec

from taskq.broker.log.dump import DumpedBatch
from taskq.broker.port import Lost, Record
from taskq.errors import SerializationError
from taskq.message import JsonEnvelope, decode_envelope, decode_headers, format_id

_SHOWN_MAX = 300
_COMPRESSION, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20


class Enough(Exception):
    """As much has been printed as was asked for."""


class TextPrinter:
    """A line for each batch, and one for each of its records."""

    def __init__(self, records: bool, limit: int | None) -> None:
        self._records = records
        self._left = limit
        self._file = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing is held."""

    def batch(self, batch: DumpedBatch) -> None:
        """Print it. Raises Enough when it was the last one wanted."""
        self._head(batch.file)
        self._print_batch(batch)
        if not self._records:
            self._count()
        for record in batch.records:
            self._print_record(record)
            self._count()

    def lost(self, lost: Lost) -> None:
        """Print what is damaged."""
        self._head(lost.file)
        click.echo(f"  LOST  {lost}")

    def _count(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise Enough

    def _head(self, file: str) -> None:
        if file != self._file:
            self._file = file
            click.echo(file)

    def _print_batch(self, batch: DumpedBatch) -> None:
        header = batch.header
        parts = [
            f"  byte {batch.position}",
            f"offsets {header.base_offset} to {header.next_offset - 1}",
            _times(header.base_timestamp_ms, header.max_timestamp_ms),
            f"{header.record_count} records",
            f"{header.size} bytes",
            f"crc {header.crc:#010x} ok",
        ]
        if header.producer_id >= 0:
            parts.append(f"producer {header.producer_id} epoch {header.producer_epoch} sequence {header.base_sequence}")
        click.echo("  ".join([*parts, *_marks(header.attributes)]))

    def _print_record(self, record: Record) -> None:
        parts = [f"    {record.offset}", _time(record.timestamp_ms)]
        if record.key is not None:
            parts.append(f"key {_literal(record.key)}")
        size = 0 if record.value is None else len(record.value)
        parts += [f"{size} bytes", _value(record.value)]
        parts += [f"{_literal(name.encode())}: {_literal(value)}" for name, value in record.headers]
        click.echo("  ".join(parts))


class JsonPrinter(TextPrinter):
    """An array of objects: each a batch, or what is lost. Printed one by one."""

    _is_first = True

    def __enter__(self) -> Self:
        click.echo("[", nl=False)
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the array, however it ended: what was printed can be read."""
        click.echo("\n]" if not self._is_first else "]")

    def batch(self, batch: DumpedBatch) -> None:
        """Print it, with the records that were asked for. Raises Enough when it was the last one wanted."""
        records = batch.records if self._left is None else batch.records[: self._left]
        document: dict[str, Any] = {"file": batch.file, "position": batch.position, "size_bytes": batch.header.size}
        document |= batch.header._asdict() | {"last_offset": batch.header.next_offset - 1}
        document |= {"crc_ok": True, "marks": _marks(batch.header.attributes)}
        if self._records:
            document["records"] = [_record_as_json(record) for record in records]
        self._print(document)
        for _ in records if self._records else [batch]:
            self._count()

    def lost(self, lost: Lost) -> None:
        """Print what is damaged."""
        import attrs

        self._print({"lost": attrs.asdict(lost)})

    def _print(self, document: dict[str, Any]) -> None:
        click.echo(("\n" if self._is_first else ",\n") + json.dumps(document), nl=False)
        self._is_first = False


def _marks(attributes: int) -> list[str]:
    marks = [f"compression {attributes & _COMPRESSION}"] if attributes & _COMPRESSION else []
    marks += ["transactional"] if attributes & _TRANSACTIONAL else []
    return marks + (["control"] if attributes & _CONTROL else [])


def _time(timestamp_ms: int) -> str:
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{timestamp_ms % 1000:03}Z" if timestamp_ms >= 0 else "no time"


def _times(first_ms: int, last_ms: int) -> str:
    return _time(first_ms) if first_ms == last_ms else f"{_time(first_ms)} to {_time(last_ms)}"


def _literal(raw: bytes) -> str:
    """Text if it is that, else bytes, as a Python literal, cut if it is long."""
    try:
        shown = ascii(raw.decode())
    except UnicodeDecodeError:
        shown = ascii(raw)
    return _cut(shown)


def _cut(shown: str) -> str:
    return shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}... ({len(shown)} characters)"


def _invocation(value: bytes | None) -> dict[str, Any] | None:
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


def _value(value: bytes | None) -> str:
    if value is None:
        return "no value (a tombstone)"
    found = _invocation(value)
    if found is None:
        return _literal(value)
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


def _record_as_json(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "headers": decode_headers(record.headers),
        "size_bytes": 0 if record.value is None else len(record.value),
        "value_base64": None if record.value is None else b64encode(record.value).decode(),
    }
    invocation = _invocation(record.value)
    if invocation is not None:
        found["invocation"] = msgspec.to_builtins(invocation, enc_hook=ascii, builtin_types=())
    return found
