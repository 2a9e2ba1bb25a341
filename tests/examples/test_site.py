"""The site as people use it: a web server and workers as processes, over HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from examples.sns_feed import store
from examples.sns_feed.local import Site, SiteError
from examples.sns_feed.posting import TEXT_MAX
from examples.sns_feed.seed import seed
from examples.sns_feed.tasks import CHUNK
from tests.examples.graphs import star

DRAIN_S = 20


@pytest.fixture
def browser(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=20) as client:
        yield client


def test_a_queued_post_reaches_every_follower_exactly_once(site: Site):
    posted = site.post(1, "by way of the log", "queued")
    site.wait(lambda: not site.wrong_rows(posted.post_id), DRAIN_S, "delivery")
    site.wait(lambda: site.backlog.read() == 0, DRAIN_S, "empty backlog")
    assert not site.wrong_rows(posted.post_id)


def test_an_inline_post_has_reached_everyone_when_it_is_answered(site: Site):
    posted = site.post(1, "the long way", "inline")
    assert not site.wrong_rows(posted.post_id)


def test_a_post_of_someone_without_followers_is_simply_there(site: Site, browser: httpx.Client):
    posted = site.post(5, "is anybody listening", "queued")
    page = browser.get(f"/posts/{posted.post_id}").raise_for_status().text
    assert "is anybody listening" in page
    assert "nobody: no followers yet" in page


def test_the_page_of_a_post_shows_both_times(site: Site, browser: httpx.Client):
    queued = site.post(1, "compare me", "queued").post_id
    inline = site.post(1, "compare me", "inline").post_id
    site.wait(lambda: all(answer_time(site, post_id) for post_id in (queued, inline)), DRAIN_S, "answer time")
    for post_id in (queued, inline):
        page = browser.get(f"/posts/{post_id}").raise_for_status().text
        assert "With taskq" in page
        assert "60 INSERTs" in page
        assert "times sooner with taskq" in page


def answer_time(site: Site, post_id: int) -> int | None:
    with site.database.reading() as db:
        post = store.find_post(db, post_id)
    return None if post is None else post.answer_us


def test_everyone_posting_at_once_is_one_bulk_publish_that_drains(site: Site, browser: httpx.Client):
    answer = browser.post("/backlog")
    assert (answer.status_code, answer.headers["location"]) == (303, "/backlog")
    with site.database.reading() as db:
        post = store.posts_of(db, 1, 1)[0]
    site.wait(lambda: not site.wrong_rows(post.id), DRAIN_S, "delivery")


def test_people_are_listed_and_found(browser: httpx.Client):
    assert "60 followers" in browser.get("/").raise_for_status().text
    found = browser.get("/", params={"q": "user 42"}).raise_for_status().text
    assert "/users/42" in found
    assert "/users/41" not in found
    assert "Nobody here" in browser.get("/", params={"q": "%"}).raise_for_status().text


@pytest.mark.parametrize("path", ["/users/999", "/users/99999999999999999999", "/posts/999", "/users/x", "/nowhere"])
def test_what_is_not_there_is_a_page_that_says_so(browser: httpx.Client, path: str):
    answer = browser.get(path)
    assert answer.status_code == 404
    assert "Not Found" in answer.text
    assert "Back to people" in answer.text


@pytest.mark.parametrize("mode", ["queued", "inline"])
@pytest.mark.parametrize("author", ["999", "99999999999999999999"])
def test_an_unknown_author_can_not_post(browser: httpx.Client, author: str, mode: str):
    answer = browser.post(f"/users/{author}/posts", data={"text": "boo", "mode": mode})
    assert answer.status_code == 404
    assert "Back to people" in answer.text


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "nothing in it yet"), (" \r\n\0 ", "nothing in it yet"), ("x" * (TEXT_MAX + 1), "501 characters")],
)
def test_a_text_that_can_not_be_posted_comes_back_with_the_reason(browser: httpx.Client, text: str, told: str):
    answer = browser.post("/users/1/posts", data={"text": text, "mode": "inline"})
    assert answer.status_code == 422
    assert told in answer.text
    assert text.strip("\r\n\0 ") in answer.text
    assert 'value="inline" checked' in answer.text


def test_a_way_to_post_that_there_is_not_is_refused(browser: httpx.Client):
    answer = browser.post("/users/1/posts", data={"text": "hello", "mode": "pigeon"})
    assert answer.status_code == 400
    assert "pigeon" in answer.text


def test_a_form_far_too_large_is_refused(browser: httpx.Client):
    answer = browser.post("/users/1/posts", data={"text": "x" * 2_000_000})
    assert answer.status_code == 400
    assert "maximum size" in answer.text


def test_a_text_is_shown_as_written(site: Site, browser: httpx.Client):
    posted = site.post(1, "<script>alert(1)</script> & more", "inline")
    for path in (f"/posts/{posted.post_id}", "/users/2"):
        page = browser.get(path).raise_for_status().text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
        assert "<script>alert" not in page


def first_events(
    browser: httpx.Client, path: str, wanted: str, *, last_id: int | None = None, then: Callable[[], object] = bool
) -> str:
    """What an event stream sends until it has sent that; `then` is called once it is open."""
    received = ""
    headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
    with browser.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        then()
        for chunk in answer.iter_text():
            received += chunk
            if wanted in received:
                return received
    raise AssertionError(f"the stream ended without {wanted!r}: {received!r}")


def test_a_new_post_comes_down_the_feed_s_event_stream(site: Site, browser: httpx.Client):
    with site.database.reading() as db:
        last = store.last_feed_row(db, 9)
    events = first_events(
        browser, f"/users/9/events?after={last}", "news for nine", then=lambda: site.post(1, "news for nine", "queued")
    )
    assert "event: post\ndata: <article" in events
    assert events.count("event: post") == 1


def test_an_event_stream_resumes_after_the_last_event_seen(site: Site, browser: httpx.Client):
    posts = [site.post(1, text, "inline").post_id for text in ("one to miss", "one to resume with")]
    with site.database.reading() as db:
        seen = [row.id for row in store.feed_since(db, 11, 0) if row.post.id == posts[0]]
    events = first_events(browser, "/users/11/events", "one to resume with", last_id=seen[0])
    assert "one to miss" not in events


def test_an_event_stream_from_a_place_that_is_no_number_is_refused(browser: httpx.Client):
    assert browser.get("/users/1/events", params={"after": "yesterday"}).status_code == 400


def test_the_progress_of_a_post_is_told_to_its_end(site: Site, browser: httpx.Client):
    posted = site.post(1, "how far are we", "queued")
    events = first_events(browser, f"/posts/{posted.post_id}/events", "event: done")
    assert '"rows": 60' in events


def test_the_backlog_is_exact_before_a_worker_starts_and_zero_at_the_end(tmp_path: Path):
    site = Site(tmp_path, workers=0)
    seed(site.database, star(CHUNK * 4))
    with site, httpx.Client(base_url=site.url, timeout=20) as browser:
        posts = [site.post(1, "waiting on disk", "queued").post_id for _ in range(3)]
        assert site.backlog.read() == 3
        first_events(browser, "/backlog/events", '"backlog": 3')
        site.start_worker("worker")
        site.wait(lambda: site.backlog.read() == 0, DRAIN_S, "empty backlog")
        assert not any(site.wrong_rows(post_id) for post_id in posts)
        first_events(browser, "/backlog/events", '"backlog": 0')


def test_a_process_that_ends_by_itself_is_told(tmp_path: Path):
    site = Site(tmp_path, workers=1)
    seed(site.database, star(3))
    with pytest.raises(SiteError, match="victim ended with exit code -9"), site:  # noqa: PT012 - in two statements
        os.kill(site.start_worker("victim").pid, signal.SIGKILL)
        site.watch()


def test_the_site_stops_in_order_while_someone_listens(tmp_path: Path):
    lines: list[str] = []
    site = Site(tmp_path, workers=1, show=lines.append)
    seed(site.database, star(3))
    with httpx.Client(timeout=20) as browser, ExitStack() as streams, site:
        answer = streams.enter_context(browser.stream("GET", f"{site.url}/backlog/events"))
        assert next(answer.iter_text())
    assert not [line for line in lines if "Traceback" in line or "ERROR" in line]
