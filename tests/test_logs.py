"""Lines on stderr: what anybody wrote neither breaks them nor makes others of its own."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskq.logs import JsonLines, TextLines

FORGED = "i\n2026-11-19 11:00:00,000 1 CRITICAL taskq.worker: forged"


def record(msg: object = "said", *args: object, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": msg, "args": args, "levelname": "INFO", "name": "shop", **extra})


def test_a_text_line_has_no_control_characters() -> None:
    line = TextLines().format(record("one\rtwo\x1b[31m\u2028three\u202e\x85 %s", "ü\u3000漢"))
    assert line.endswith("INFO shop: one\\rtwo\\x1b[31m\\u2028three\\u202e\\x85 ü\u3000漢")


def test_a_message_may_have_several_lines() -> None:
    assert TextLines().format(record("one\n\ttwo")).endswith("one\n\ttwo")


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("no")


def circular() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(100_000):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ({"ratio": float("nan")}, "{'ratio': nan}"),
        ({float("nan"): 1}, "{nan: 1}"),
        (circular(), "[[...]]"),
        (Unspeakable(), "<it can't be told: ValueError>"),
        ([1, Unspeakable()], [1, "<it can't be told: ValueError>"]),
        (deep(), "<it can't be told: RecursionError>"),
        (10**5000, "<it can't be told: ValueError>"),
        (b"\xff", "b'\\xff'"),
        ({("a", 1): 2, "b": 3}, {"b": 3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_json_line_is_json_whatever_is_in_it(value: Any, told: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads(JsonLines().format(record(FORGED, odd=value, well=1)), parse_constant=refuse)
    assert (line["odd"], line["well"], line["message"]) == (told, 1, FORGED)
