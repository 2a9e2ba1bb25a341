"""Log messages on stderr: what long-running commands and a worker's child processes write there, and how.

What a message tells of (names, ids, errors) was written by anybody: no control character of it reaches a terminal, and
none makes a line look like two.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from taskq.text import printable

TEXT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"

_KEPT = "\n\t\xa0\u3000"
"""Of what is not to be seen: what makes messages of several lines, and spaces of other scripts."""


class TextLines(logging.Formatter):
    """Lines of text with the time, the process and the level."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), _KEPT)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, process, level, logger, message, traceback, and all that `extra=` gave."""

    # What every record has is no extra; the others are what `Formatter` itself may add.
    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": record.process,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = self.formatStack(record.stack_info)
        line = {name: value for name, value in vars(record).items() if name not in self._OWN} | said
        try:
            return _encode(line)
        except Exception:  # NaN is no JSON, and what contains itself none either: those are told as text
            return _encode({name: _encodable(value) for name, value in line.items()})


def _text(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<it can't be told: {type(error).__name__}>"


_encode = json.JSONEncoder(default=_text, skipkeys=True, allow_nan=False).encode


def _encodable(value: Any) -> Any:
    try:
        _encode(value)
    except Exception:
        return _text(value)
    return value


def log_to_stderr(level: str = "info", form: str = "text") -> None:
    """Show messages of `level` and above on stderr, as lines of text with the process that says it, or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
