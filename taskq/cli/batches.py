"""How `taskq log dump` prints batches and records: lines for people, an array of JSON for programs."""

from __future__ import annotations

import json
from typing import Any, Self

import click

from taskq.broker.log.dump import DumpedBatch
from taskq.broker.port import Lost, Record
from taskq.cli.literals import literal, record_as_json, time_text, value_text

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
        parts = [f"    {record.offset}", time_text(record.timestamp_ms)]
        if record.key is not None:
            parts.append(f"key {literal(record.key)}")
        size = 0 if record.value is None else len(record.value)
        parts += [f"{size} bytes", value_text(record.value)]
        parts += [f"{literal(name.encode())}: {literal(value)}" for name, value in record.headers]
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
            document["records"] = [record_as_json(record) for record in records]
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


def _times(first_ms: int, last_ms: int) -> str:
    return time_text(first_ms) if first_ms == last_ms else f"{time_text(first_ms)} to {time_text(last_ms)}"
