"""How `taskq dead` shows dead letters: tables and lines for people, objects for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from taskq.cli.literals import first_line, indented, literal, record_as_json, time_text, value_text
from taskq.cli.output import show_table
from taskq.text import printable
from taskq.trip import PastError
from taskq.worker.deadletters import DeadLetter, Origin

_PAGE = 1000
"""How many lines of a table are aligned with each other: there may be many."""

_ERROR_CHARACTERS_MAX = 60


def show_letters(letters: Iterable[DeadLetter]) -> None:
    """Print a table of them."""
    columns = ("time", "id", "task", "reason", "attempts", "retried", "error")
    rows: Iterator[dict[str, Any]] = (
        {
            "time": time_text(letter.time_ms),
            "id": printable(letter.name),
            "task": printable(letter.task) or None,
            "reason": printable(letter.reason) or None,
            "attempts": letter.trip.attempts,
            "retried": letter.trip.retried,
            "error": first_line(_error_of(letter), _ERROR_CHARACTERS_MAX),
        }
        for letter in letters
    )
    page = list(islice(rows, _PAGE))
    while True:
        show_table(columns, page)
        page = list(islice(rows, _PAGE))
        if not page:
            return


def _error_of(letter: DeadLetter) -> str:
    return f"{letter.type}: {letter.message}" if letter.type and letter.message else letter.type or letter.message


def summary(letter: DeadLetter) -> dict[str, Any]:
    """What a list says of a letter, for programs."""
    return {
        "id": letter.id,
        "place": letter.place,
        "group": letter.group,
        "task": letter.task,
        "reason": letter.reason,
        "type": letter.type,
        "message": letter.message,
        "time_ms": letter.time_ms,
        "attempts": letter.trip.attempts,
        "retried": letter.trip.retried,
        "published_ms": letter.published_ms or None,
        "origin": _as_place(letter.origin),
        "given_up_at": _as_place(letter.given_up_at),
    }


def _as_place(place: Origin | None) -> dict[str, Any] | None:
    return None if place is None else dict(zip(("topic", "partition", "offset"), place, strict=True))


def everything(letter: DeadLetter) -> dict[str, Any]:
    """All that is known of a letter, for programs."""
    record = {name: value for name, value in record_as_json(letter.record).items() if name not in ("offset", "headers")}
    errors = msgspec.to_builtins(letter.trip.errors)
    return {**summary(letter), "traceback": letter.traceback, "errors": errors, "headers": letter.headers, **record}


def lines_of(letter: DeadLetter) -> Iterator[str]:
    """Everything, for people."""
    record = letter.record
    said = {
        "task": letter.task,
        "reason": letter.reason,
        "error": _error_of(letter),
        "given up": f"{time_text(letter.time_ms)} by group {letter.group}, at {_place_text(letter.given_up_at)}",
        "attempts": str(letter.trip.attempts),
        "retried": str(letter.trip.retried),
        "published": f"{time_text(letter.published_ms)} " * bool(letter.published_ms)
        + f"at {_place_text(letter.origin)}",
        "kept at": f"{letter.tp} offset {record.offset} ({letter.place})",
        "key": "" if record.key is None else literal(record.key),
        "value" if letter.envelope is None else "call": value_text(record.value),
    }
    yield printable(letter.name)
    for name, text in said.items():
        if text:
            yield f"  {name:<10} {indented(text, 13)}"
    headers = [f"{literal(name.encode())}: {literal(text.encode())}" for name, text in letter.headers.items()]
    yield from _section("headers", headers)
    yield from _section("history", [indented(_past_text(one), 6) for one in letter.trip.errors])
    yield from _section("traceback", [indented(letter.traceback, 4)] if letter.traceback else [])


def _section(title: str, parts: list[str]) -> Iterator[str]:
    if parts:
        yield f"  {title}"
        yield from (f"    {part}" for part in parts)


def _place_text(place: Origin | None) -> str:
    return "a place that is not known" if place is None else f"{place[0]}/{place[1]} offset {place[2]}"


def _past_text(past: PastError) -> str:
    attempt = f"attempt {past.attempt}" if past.attempt else "not run"
    return f"{time_text(past.time_ms)}  {attempt}  {past.type}: {past.message}"
