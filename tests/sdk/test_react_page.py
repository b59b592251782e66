"""A small React application with Stream's own hooks, built by Vite, in Chromium, on the relay."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Page, expect

from tests.integration.doors import by_server, post
from tests.processes import API_KEY
from tests.redis_server import RedisServer
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def room(
    browser: Browser, site: str, relay: Front, user_id: str, cid: str
) -> AsyncIterator[Page]:
    """Give the page as a user has it open; it may not throw anything."""
    context = await browser.new_context(viewport={"width": 720, "height": 560})
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    query = {
        "relay": relay.base_url, "key": API_KEY, "user": user_id, "token": relay.token(user_id),
        "call": cid,
    }  # fmt: skip
    try:
        await page.goto(f"{site}/react.html?{urlencode(query)}")
        await expect(page.get_by_role("heading")).to_contain_text(cid)
        yield page
    finally:
        await context.close()
    assert errors == []


async def shows(page: Page, fact: str, text: str) -> None:
    """Wait until a fact of the call is on the screen."""
    await expect(page.get_by_test_id(fact)).to_have_text(text)


async def lists(page: Page, *lines: str) -> None:
    """Wait until the page lists these events."""
    await expect(page.get_by_test_id("events").locator("li")).to_have_text(lines)


async def test_events_go_both_ways_between_two_pages_and_a_backend(
    relay: Front, browser: Browser, site: str, redis_server: RedisServer, cid: str
) -> None:
    async with (
        room(browser, site, relay, "ada", cid) as ada,
        room(browser, site, relay, "bob", cid) as bob,
    ):
        await ada.get_by_role("button", name="Balloons").click()
        for page in (ada, bob):
            await lists(page, "Ada: balloons")
        await bob.get_by_role("button", name="Raise hand").click()
        for page in (ada, bob):
            await lists(page, "Ada: balloons", "Bob: raised-hand")
        await by_server(relay, redis_server, cid, {"animation": "confetti"})
        for page in (ada, bob):
            await expect(page.get_by_test_id("events").locator("li").nth(2)).to_have_text(
                re.compile("confetti")
            )


async def test_the_screen_follows_the_state_of_the_call(
    relay: Front, browser: Browser, site: str, cid: str, tmp_path: Path
) -> None:
    url = f"/api/v2/video/call/{cid.replace(':', '/')}"
    async with room(browser, site, relay, "ada", cid) as ada:
        await shows(ada, "created by", "Ada")
        await shows(ada, "may end", "yes")
        await shows(ada, "members", "–")
        user = {"users": {"bob": {"id": "bob", "name": "Bob"}}}
        await post(relay, "/api/v2/users", user)
        await post(relay, f"{url}/members", {"update_members": [{"user_id": "bob"}]})
        await shows(ada, "members", "Bob")
        await post(relay, f"{url}/block", {"user_id": "eve"})
        await shows(ada, "blocked", "eve")
        await ada.get_by_label("Topic").fill("Cake")
        await shows(ada, "topic", "Cake")
        await ada.get_by_role("button", name="Join").click()
        await shows(ada, "participants", "Ada")
        await ada.get_by_role("button", name="Balloons").click()
        await lists(ada, "Ada: balloons")
        await ada.screenshot(path=tmp_path / "room.png")
        await post(relay, f"{url}/mark_ended", {})
        await shows(ada, "state", "ended")
        await shows(ada, "participants", "–")
