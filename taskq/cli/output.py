"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

NOTHING = "-"


def show_json(value: Any) -> None:
    """Print `value` as one JSON document."""
    click.echo(json.dumps(value, indent=2))


def show_json_array(values: Iterable[Any]) -> None:
    """Print `values` as one JSON array, each as it comes: there may be many."""
    before = "[\n"
    for value in values:
        click.echo(before + json.dumps(value), nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def show_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the `columns` of `rows`, with a line of headings. Numbers are aligned right, None is a dash."""
    rows = list(rows)
    cells = [[_text(row[column]) for column in columns] for row in rows]
    headings = [column.replace("_", " ").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[column], int | float | None) for row in rows) for column in columns]
    for line in [headings, *cells]:
        aligned = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())
    if not rows:
        click.echo("none yet")


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, list):
        return ", ".join(map(str, value)) or NOTHING
    return f"{value:.1f}" if isinstance(value, float) else str(value)
