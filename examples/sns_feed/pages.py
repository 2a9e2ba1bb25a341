"""From values to HTML: the templates with their filters, and the page that says what went wrong."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from examples.sns_feed.database import DatabaseMissing
from examples.sns_feed.store import Post
from taskq.errors import TaskqError

HERE = Path(__file__).parent

templates = Jinja2Templates(HERE / "templates")


def duration(microseconds: float | None) -> str:
    """`2.1 ms`, `812 ms`, `1.24 s`; dots for what is not known yet."""
    if microseconds is None:
        return "…"
    milliseconds = microseconds / 1000
    if milliseconds >= 999.5:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 9.95 else f"{milliseconds:.1f} ms"


def clock(at_ms: int) -> str:
    """The time of day, where the server is."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%H:%M:%S")


def iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def initials(name: str) -> str:
    """`ML` of Mira Lopes; of Developer 4390, whose neighbours all begin alike, `90`."""
    first, *_, last = name.split()
    return last[-2:] if last.isdecimal() else first[0] + last[0]


templates.env.filters.update(duration=duration, clock=clock, iso=iso, initials=initials)


def post_html(post: Post) -> str:
    """A post as it stands in a feed."""
    return templates.get_template("_post.html").render(post=post).strip()


def _error(request: Request, status: int, title: str, detail: str) -> Response:
    return templates.TemplateResponse(
        request, "error.html", {"status": status, "title": title, "detail": detail}, status_code=status
    )


def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    if error.detail != phrase:
        return _error(request, error.status_code, phrase, error.detail)
    return _error(request, error.status_code, phrase, f"{request.method} {request.url.path} leads nowhere.")


def number_too_large(request: Request, _: Exception) -> Response:
    return _error(request, 404, "Not Found", "No user and no post has a number that large.")


def queue_unavailable(request: Request, error: Exception) -> Response:
    detail = f"Nothing was posted, because it could not be queued: {error}"
    return _error(request, 503, "The queue does not answer", detail)


def database_unavailable(request: Request, error: Exception) -> Response:
    return _error(request, 503, "The database does not answer", str(error))


def unexpected(request: Request, error: Exception) -> Response:
    return _error(request, 500, "That did not work", f"{type(error).__name__}: the server's log says more.")


ERROR_PAGES = {
    HTTPException: http_error,
    OverflowError: number_too_large,
    TaskqError: queue_unavailable,
    DatabaseMissing: database_unavailable,
    sqlite3.OperationalError: database_unavailable,
    Exception: unexpected,
}
