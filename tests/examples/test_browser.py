"""The pages in a real Chromium: what no HTTP client sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples.sns_feed.local import Site
from tests.needs import missing, require

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()
)
PHONE = 390
WAIT_MS = 20_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = require("chromium")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        missing("playwright", "playwright is not installed")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser, site: Site) -> Iterator[BrowserContext]:
    """A window on the site. Whatever its pages complain of fails the test."""
    complaints: list[str] = []
    context = chromium.new_context(base_url=site.url, viewport={"width": 1100, "height": 800})
    context.set_default_timeout(WAIT_MS)
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    context.close()
    assert not complaints


def post(page: Page, text: str, way: str) -> None:
    page.get_by_role("textbox", name="What’s new").fill(text)
    page.get_by_text(way, exact=True).click()
    page.get_by_role("button", name="Post").click()
    page.wait_for_url("**/posts/*")


def test_a_post_appears_in_a_follower_s_open_feed_without_a_reload(context: BrowserContext, tmp_path: Path):
    from playwright.sync_api import expect

    reader, author = context.new_page(), context.new_page()
    reader.goto("/users/2")
    expect(reader.get_by_text("live", exact=True)).to_be_visible()
    reader.evaluate("window.neverReloaded = true")
    author.goto("/users/1")
    post(author, "Hello, everyone!\n<b>Two</b> lines & more.", "With taskq")
    arrived = reader.locator(".feed .post").first
    expect(arrived).to_contain_text("<b>Two</b> lines & more.")
    expect(arrived).to_contain_text("User 1")
    assert reader.evaluate("window.neverReloaded") is True
    picture = tmp_path / "feed.png"
    reader.screenshot(path=picture)
    assert picture.stat().st_size > 10_000


def test_the_page_of_a_post_compares_both_ways_and_follows_the_delivery(context: BrowserContext, tmp_path: Path):
    from playwright.sync_api import expect

    page = context.new_page()
    page.goto("/users/1")
    post(page, "Which way is quicker?", "Inside the request")
    expect(page.locator(".delivery[data-answered] #rows")).to_have_text("60")  # else it may reload itself any moment
    page.goto("/users/1")
    post(page, "Which way is quicker?", "With taskq")
    expect(page.get_by_text("60 of 60, the last after")).to_be_visible()
    expect(page.get_by_text("times sooner with taskq, for 60 followers")).to_be_visible()
    page.screenshot(path=tmp_path / "post.png", full_page=True)


def test_the_backlog_rises_and_falls_in_the_chart(context: BrowserContext, tmp_path: Path):
    from playwright.sync_api import expect

    page = context.new_page()
    page.goto("/backlog")
    expect(page.locator(".chart path.line")).to_have_count(1)
    page.get_by_role("button", name="Let the 100 most followed post at once").click()
    expect(page.locator("[data-show=peak]")).to_have_text(re.compile("[1-9]"))
    expect(page.locator("[data-show=now]")).to_have_text("0")
    expect(page.locator("[data-show=drained]")).to_contain_text(" s")
    page.screenshot(path=tmp_path / "backlog.png")


def test_a_text_with_nothing_in_it_comes_back_with_the_reason(chromium: Browser, site: Site):
    from playwright.sync_api import expect

    page = chromium.new_page(base_url=site.url)
    page.goto("/users/1")
    page.locator("textarea").evaluate("field => field.removeAttribute('required')")
    page.get_by_role("button", name="Post").click()
    expect(page.get_by_role("alert")).to_have_text("There is nothing in it yet. Write a few words, then post.")
    page.close()


@pytest.mark.parametrize("path", ["/", "/users/1", "/posts/1", "/backlog", "/nowhere"])
def test_no_page_is_wider_than_a_phone(chromium: Browser, site: Site, path: str):
    page = chromium.new_page(base_url=site.url, viewport={"width": PHONE, "height": 844})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    page.close()
