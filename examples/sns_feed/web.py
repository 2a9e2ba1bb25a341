"""The web server: `python -m examples.sns_feed.web [--port 8000]`."""

from __future__ import annotations

import argparse
import json
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar, get_args

import anyio
import uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from examples.sns_feed import store
from examples.sns_feed.backlog import Backlog
from examples.sns_feed.database import DatabaseMissing
from examples.sns_feed.live import Live, Signal, sse, stream
from examples.sns_feed.pages import ERROR_PAGES, HERE, duration, post_html, templates
from examples.sns_feed.posting import TEXT_MAX, BadText, UnknownAuthor, clean, post_as_crowd, post_inline, post_queued
from examples.sns_feed.tasks import CHUNK, database
from taskq.app import default_app

PEOPLE_SHOWN = 12
ASIDE_SHOWN = 6
CROWD = 100
PORT_DEFAULT = 8000

P = ParamSpec("P")
T = TypeVar("T")


async def ask(question: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the store something in a thread, so that the event loop goes on."""

    def answer() -> T:
        with database.reading() as db:
            return question(db, *args, **kwargs)

    return await run_sync(answer)


def live_of(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


async def home(request: Request) -> Response:
    words = request.query_params.get("q", "").strip()[:100]
    people = await (ask(store.search_users, words, PEOPLE_SHOWN) if words else ask(store.top_users, PEOPLE_SHOWN))
    context = {
        "section": "home",
        "words": words,
        "people": people,
        "totals": await ask(store.totals),
        "most": max((user.followers for user in people), default=0) or 1,
    }
    return templates.TemplateResponse(request, "home.html", context)


async def user_page(request: Request) -> Response:
    return await show_user(request)


async def show_user(request: Request, text: str = "", mode: store.Mode = "queued", problem: str = "") -> Response:
    user_id = request.path_params["user_id"]
    user = await ask(store.find_user, user_id)
    if user is None:
        raise HTTPException(404, f"There is no user with the number {user_id}.")
    context = {
        "user": user,
        # Asked before the feed: what comes in between is sent again by the live feed, and shown once.
        "last_row": await ask(store.last_feed_row, user_id),
        "feed": await ask(store.feed, user_id),
        "posts": await ask(store.posts_of, user_id, ASIDE_SHOWN),
        "followed_by": await ask(store.followers, user_id, ASIDE_SHOWN),
        "following": await ask(store.following, user_id, ASIDE_SHOWN),
        "text": text,
        "text_max": TEXT_MAX,
        "mode": mode,
        "problem": problem,
    }
    return templates.TemplateResponse(request, "user.html", context, status_code=422 if problem else 200)


async def create_post(request: Request) -> Response:
    started = time.perf_counter()
    author_id: int = request.path_params["user_id"]
    form = await request.form()
    text, mode = str(form.get("text", "")), form.get("mode", "queued")
    if mode not in get_args(store.Mode):
        raise HTTPException(400, f"A post is {' or '.join(get_args(store.Mode))}, not {str(mode)[:20]!r}.")
    try:
        post = post_queued if mode == "queued" else post_inline
        post_id = await post(author_id, clean(text))
    except BadText as error:
        return await show_user(request, text, "queued" if mode == "queued" else "inline", str(error))
    except UnknownAuthor:
        raise HTTPException(404, f"There is no user with the number {author_id}.") from None
    return posted(request, f"/posts/{post_id}", [post_id], started)


def posted(request: Request, then: str, post_ids: list[int], started: float) -> Response:
    """Send the browser on. The time to answer is stored when the answer has gone out, so as not to be part of it."""
    answer_us = round((time.perf_counter() - started) * 1_000_000)
    live_of(request).samples.want()
    return RedirectResponse(then, status_code=303, background=BackgroundTask(remember, post_ids, answer_us))


async def remember(post_ids: list[int], answer_us: int) -> None:
    def write() -> None:
        with database.writing() as db:
            store.set_answer_time(db, post_ids, answer_us)

    await run_sync(write)


async def find_post(request: Request) -> store.Post:
    post_id = request.path_params["post_id"]
    post = await ask(store.find_post, post_id)
    if post is None:
        raise HTTPException(404, f"There is no post with the number {post_id}.")
    return post


async def post_page(request: Request) -> Response:
    post = await find_post(request)
    other = await ask(store.latest_answered, post.author.id, "inline" if post.mode == "queued" else "queued")
    delivery = await ask(store.delivery, post.id)
    queued, inline = (post, other) if post.mode == "queued" else (other, post)
    times = [side.answer_us for side in (queued, inline) if side is not None and side.answer_us is not None]
    longest = max(times, default=1)

    def side(mode: str, title: str, told: str, shown: store.Post | None) -> dict[str, object]:
        share = 100 * ((shown and shown.answer_us) or 0) / longest
        return {"mode": mode, "title": title, "told": told, "post": shown, "share": share}

    context = {
        "post": post,
        "sides": [
            side("queued", "With taskq", "to answer: one invocation published", queued),
            side("inline", "Inside the request", f"to answer: {post.author.followers:,} INSERTs", inline),
        ],
        "ratio": ratio(queued, inline),
        "delivery": delivery,
        "took": took(post, delivery),
        "readers": await ask(store.followers, post.author.id, ASIDE_SHOWN),
    }
    return templates.TemplateResponse(request, "post.html", context)


def ratio(queued: store.Post | None, inline: store.Post | None) -> str:
    """How many times sooner the queued post was answered; empty while one of the two is not known."""
    if queued is None or inline is None or not queued.answer_us or not inline.answer_us:
        return ""
    times = inline.answer_us / queued.answer_us
    return f"{times:,.0f}" if times >= 9.95 else f"{times:.1f}"


def took(post: store.Post, delivery: store.Delivery) -> str:
    """From the post to its last feed row; empty until every follower has it."""
    if delivery.last_at_ms is None or delivery.rows < post.author.followers:
        return ""
    return duration((delivery.last_at_ms - post.created_at_ms) * 1000)


async def backlog_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "backlog.html", {"section": "backlog", "crowd": CROWD, "chunk": CHUNK})


async def create_crowd(request: Request) -> Response:
    started = time.perf_counter()
    return posted(request, "/backlog", await post_as_crowd(await ask(store.top_users, CROWD)), started)


def event_stream(signal: Signal, news: Callable[[], AsyncIterator[str]]) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(signal, news), media_type="text/event-stream", headers=headers)


async def feed_events(request: Request) -> Response:
    user_id: int = request.path_params["user_id"]
    try:
        # The browser sends the header when it connects again.
        last_row = int(request.headers.get("last-event-id") or request.query_params.get("after", "0"))
    except ValueError:
        raise HTTPException(400, "`after` is the number of a feed row.") from None

    async def news() -> AsyncIterator[str]:
        nonlocal last_row
        for row in await ask(store.feed_since, user_id, last_row):
            yield sse(post_html(row.post), event="post", id=row.id)
            last_row = row.id

    return event_stream(live_of(request).rows, news)


async def post_events(request: Request) -> Response:
    sent: dict[str, object] = {}
    post_id = (await find_post(request)).id

    async def news() -> AsyncIterator[str]:
        nonlocal sent
        post = await find_post(request)
        delivery = await ask(store.delivery, post_id)
        answered = post.answer_us is not None
        progress: dict[str, object] = {"rows": delivery.rows, "answered": answered, "took": took(post, delivery)}
        if progress != sent:
            sent = progress
            yield sse(json.dumps(progress), event="progress")
        if delivery.rows >= post.author.followers and answered:
            yield sse("{}", event="done")

    return event_stream(live_of(request).rows, news)


async def backlog_events(request: Request) -> Response:
    live = live_of(request)
    sent_ms = 0

    async def news() -> AsyncIterator[str]:
        nonlocal sent_ms
        fresh = live.since(sent_ms)
        if fresh:
            sent_ms = fresh[-1].at_ms
            samples = [{"at": sample.at_ms, "backlog": sample.backlog} for sample in fresh]
            yield sse(json.dumps({"now": store.now_ms(), "samples": samples}), event="samples")

    return event_stream(live.samples, news)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    with database.reading():
        pass  # a missing database is told now, not at the first page
    await run_sync(lambda: default_app.producer)  # opened now, so that the first post is as quick as the others
    live = app.state.live = Live(database, Backlog(default_app.broker).read)
    async with anyio.create_task_group() as watchers:
        watchers.start_soon(live.watch_database)
        watchers.start_soon(live.watch_backlog)
        yield
        watchers.cancel_scope.cancel()
    default_app.close()
    database.close()


app = Starlette(
    routes=[
        Route("/", home),
        Route("/users/{user_id:int}", user_page),
        Route("/users/{user_id:int}/posts", create_post, methods=["POST"]),
        Route("/users/{user_id:int}/events", feed_events),
        Route("/posts/{post_id:int}", post_page),
        Route("/posts/{post_id:int}/events", post_events),
        Route("/backlog", backlog_page, methods=["GET"]),
        Route("/backlog", create_crowd, methods=["POST"]),
        Route("/backlog/events", backlog_events),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ],
    exception_handlers=ERROR_PAGES,
    lifespan=lifespan,
)


class Server(uvicorn.Server):
    """Ends the event streams first: uvicorn waits for every answer to be complete before it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app.state.live.close()
        await super().shutdown(sockets)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.sns_feed.web", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT_DEFAULT, help="0: any free one (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with database.reading():
            pass
    except DatabaseMissing as error:
        print(f"web: {error}", file=sys.stderr)
        return 1
    Server(uvicorn.Config(app, host=arguments.host, port=arguments.port, access_log=False)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
