"""The demo page as somebody uses it, and what a test can see on it.

Playwright's ``wait_for_function`` needs ``eval``, which the page's security policy forbids:
``until`` asks again and again instead, with a deadline.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from playwright.sync_api import Locator, Page, expect

ANIMATIONS: Final = ("balloons", "confetti", "hearts", "fireworks", "snow", "emoji")
LIMIT_S: Final = 10.0

_PAINTED: Final = """() => {
  const sky = document.getElementById("sky");
  const { data } = sky.getContext("2d").getImageData(0, 0, sky.width, sky.height);
  let painted = 0;
  for (let i = 3; i < data.length; i += 4) painted += data[i] > 8;
  return painted;
}"""


class DemoPage:
    """One open demo page. ``errors`` collects what it did wrong: the fixture wants it empty."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._heard(message.text))
        self.status = page.get_by_test_id("status")
        self.notice = page.get_by_test_id("notice")
        self.snippet = page.get_by_test_id("snippet")
        self.captions = page.get_by_test_id("captions").locator(".caption")
        self.events = page.get_by_test_id("events")

    def _heard(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.errors.append(text)

    def open(self, base_url: str, cid: str) -> None:
        """Go to the page by an invite link."""
        self.page.goto(f"{base_url}/?call={cid}")

    def join(self, base_url: str, cid: str, name: str) -> DemoPage:
        """Go to the page and join the call; returns once it is live and lists its own name."""
        self.open(base_url, cid)
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Join the call").click()
        self.expect_state("open")
        expect(self.watcher(name)).not_to_have_count(0)
        return self

    def button(self, animation: str) -> Locator:
        """The button that sends an animation."""
        return self.page.locator(f"button[data-animation={animation}]")

    def rows(self, animation: str | None = None) -> Locator:
        """The log's rows, newest first."""
        return self.events.locator(f".row[data-animation={animation}]" if animation else ".row")

    def markers(self, kind: str) -> Locator:
        """What the log says of the connection: lost, caught-up, gap or error."""
        return self.events.locator(f".marker[data-kind={kind}]")

    def watcher(self, name: str) -> Locator:
        """Who is listed under a name."""
        return self.watchers.filter(has_text=re.compile(f"{re.escape(name)}$"))

    @property
    def watchers(self) -> Locator:
        """Everyone who is listed."""
        return self.page.get_by_test_id("watchers").locator("li")

    def offsets(self) -> list[int]:
        """Return the offsets of the kept events in the log, oldest first."""
        texts = self.events.evaluate(
            "list => [...list.querySelectorAll('[data-offset]')].map(row => row.dataset.offset)"
        )
        return [int(text) for text in reversed(texts)]

    def stats(self) -> dict[str, Any]:
        """Return what the animations have done so far."""
        stats: dict[str, Any] = self.page.evaluate("relayDemo.effects.stats()")
        return stats

    def painted(self) -> int:
        """Return how many pixels of the canvas have something on them."""
        return int(self.page.evaluate(_PAINTED))

    def expect_state(self, state: str, limit_s: float = LIMIT_S) -> None:
        """Wait until the page shows a state of the connection."""
        expect(self.status).to_have_attribute("data-state", state, timeout=limit_s * 1000)

    def expect_drawn(self, animation: str) -> None:
        """Wait until the animation was played, its particles live and its pixels are there."""
        self.until(lambda: self.stats()["played"][animation] > 0, f"playing {animation}")
        self.until(lambda: self.painted() > 300, f"showing {animation}")
        assert self.stats()["drawn"] > 0

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
        """Return once ``condition`` holds; the page goes on meanwhile."""
        for _ in range(int(limit_s / 0.05)):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"the page is not {what} after {limit_s:g} s")
