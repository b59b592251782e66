"""One real Chromium for all tests of this folder, real relays, and a call of its own for each test.

The scope is the folder and not the session: while Playwright runs, its event loop occupies the
thread, and other folders' tests need theirs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.demo_page import DemoPage
from tests.processes import RelayProcess
from tests.redis_server import RedisServer

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip

expect.set_options(timeout=10_000)

OpenPage = Callable[..., DemoPage]
"""Opens a page in a context of its own; its arguments are those of Playwright's contexts."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="package")
def memory_relay() -> Iterator[RelayProcess]:
    """`relay demo` as it is with nothing set: its own broker and its own credentials."""
    with RelayProcess("demo", api_key="", api_secret="") as relay:
        yield relay


@pytest.fixture(scope="package")
def redis_relay(redis_server: RedisServer) -> Iterator[RelayProcess]:
    """The same on Redis."""
    with RelayProcess("demo", api_key="", api_secret="", redis_url=redis_server.url) as relay:
        yield relay


@pytest.fixture
def cid(request: pytest.FixtureRequest) -> str:
    """A call that no other test uses."""
    return "default:" + re.sub(r"\W+", "-", request.node.name)[:60].strip("-")


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    contexts, pages = [], []

    def open_one(**options: Any) -> DemoPage:
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        pages.append(DemoPage(context.new_page()))
        return pages[-1]

    yield open_one
    for context in contexts:
        context.close()
    assert [error for page in pages for error in page.errors] == []
