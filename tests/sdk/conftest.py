"""What every SDK is tried against: one relay on its own, and two on Redis of which the SDK's socket
is always on the other one than its requests.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from tests.browser.conftest import CHROMIUM_FLAGS
from tests.cloud import cloud, moto
from tests.processes import RelayProcess, relay_pair
from tests.redis_server import RedisServer, redis_server
from tests.sdk.driver import FOLDER, VideoClient, in_chromium, in_node, node
from tests.sdk.front import Front

__all__ = ["cloud", "moto", "redis_server"]

Opens = Callable[[Front], AbstractAsyncContextManager[VideoClient]]
"""Opens a video client that talks to a relay."""

BOTH = pytest.mark.parametrize(
    ("relay", "opens"), [("memory", "node"), ("two on redis", "chromium")], indirect=True
)
"""Each relay and each runtime once: what only some tests try in all four combinations."""


@pytest.fixture(scope="session")
def memory_front() -> Iterator[Front]:
    with RelayProcess(http_rate=0) as relay, Front(relay) as front:
        yield front


@pytest.fixture(scope="session")
def redis_front(redis_server: RedisServer) -> Iterator[Front]:
    settings = {"redis_prefix": "sdk:", "http_rate": 0}
    with relay_pair(redis_server.url, **settings) as (one, two), Front(one, two) as front:
        yield front


@pytest.fixture(params=["memory", "two on redis"])
def relay(request: pytest.FixtureRequest) -> Iterator[Front]:
    """A relay that the SDK reaches through a front, which checks all that is said."""
    name = "memory_front" if request.param == "memory" else "redis_front"
    front: Front = request.getfixturevalue(name)
    yield front
    front.check()


# -- pages --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where the pages are: built by Vite, on another origin than any relay."""
    folder = tmp_path_factory.mktemp("pages")
    build(folder)
    with served(folder) as address:
        yield address


def build(folder: Path) -> None:
    """Have Vite build the pages into a folder."""
    vite = FOLDER.parents[1] / "node_modules" / "vite" / "bin" / "vite.js"
    command = [node(), str(vite), "build", str(FOLDER / "pages"), "--outDir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: what goes wrong, the pages show."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve files on a free port of 127.0.0.1."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("chromium is missing: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        await browser.close()


@pytest.fixture(params=["node", "chromium"])
def opens(request: pytest.FixtureRequest) -> Opens:
    """Return what opens a client, once in Node and once in a page of Chromium."""
    if request.param == "node":
        return in_node
    browser = request.getfixturevalue("browser")
    return functools.partial(in_chromium, browser=browser, site=request.getfixturevalue("site"))


@pytest.fixture
def cid(request: pytest.FixtureRequest) -> str:
    """A call that no other test uses."""
    name = request.node.name.removeprefix("test_")
    return "default:" + re.sub(r"\W+", "-", name)[-100:].strip("-")


@pytest.fixture
def browser_opens(browser: Browser, site: str) -> Opens:
    """Return what opens a client in a page of Chromium."""
    return functools.partial(in_chromium, browser=browser, site=site)
