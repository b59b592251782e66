"""Drive Stream's video client, in Node or in a page of Chromium, by the same JavaScript.

john = await client.connect("john", token)
state = await client.run("call.queryMembers({filter_conditions: {user_id: who}})", who="jane")
events = await client.events(2, "custom")
"""

from __future__ import annotations

import asyncio
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.async_api import Browser, Page

from tests.processes import API_KEY
from tests.sdk.front import Front

Report = dict[str, Any]
FOLDER = Path(__file__).parent
LIMIT_S = 20.0
SENT_BY_USERS = ("custom", "call.reaction_new")


def node() -> str:
    """Return the path of Node; a test cannot go on without it and the SDKs."""
    if (found := shutil.which("node")) is None:
        pytest.fail("Node.js is missing: 'make test' says what to install")
    if not (FOLDER.parents[1] / "node_modules" / "@stream-io").is_dir():
        pytest.fail("the JavaScript SDKs are missing: npm ci")
    return found


class Reachable(Protocol):
    """What leads to a relay: a front, a line that can be cut."""

    base_url: str


class Failed(Exception):
    """The SDK threw; ``code``, ``status`` and ``unrecoverable`` are those of its error."""

    def __init__(self, error: Report) -> None:
        super().__init__(error["message"])
        self.code = error.get("code")
        self.status = error.get("status")
        self.unrecoverable = error.get("unrecoverable")


class VideoClient(ABC):
    """One ``StreamVideoClient``. ``reports`` has everything it told, in order."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._news = asyncio.Event()

    # -- what a user of the SDK does --------------------------------------------------------------

    async def connect(self, user: str | Report, *tokens: str) -> str:
        """Log in and return the user's id. Several tokens are given out by a token provider."""
        described = {"id": user, "name": user.capitalize()} if isinstance(user, str) else user
        return str(await self._do("connect", described, tokens))

    async def watch(self, cid: str) -> Report:
        """Get or create a call, which watches it; ``call`` in ``run`` is this one from now on."""
        return dict(await self._do("watch", *cid.split(":", 1)))

    async def send(self, custom: Report) -> None:
        """Send a custom event to the current call."""
        await self.run("call.sendCustomEvent(custom)", custom=custom)

    async def run(self, source: str, **values: Any) -> Any:
        """Return what a JavaScript expression comes to, promises awaited; raises ``Failed``.

        ``client``, ``call`` and ``values`` are in scope.
        """
        return await self._do("run", source, values)

    # -- what came of it --------------------------------------------------------------------------

    def got(self, *kinds: str) -> list[Report]:
        """Return the events of these types that have come, by default those that users send."""
        events = [report["event"] for report in self.reports if report["what"] == "event"]
        return [event for event in events if event["type"] in (kinds or SENT_BY_USERS)]

    async def events(self, count: int, *kinds: str) -> list[Report]:
        """Return the events of these types, once there are so many."""
        await self.until(lambda: len(self.got(*kinds)) >= count, f"{count} events {kinds}")
        return self.got(*kinds)

    async def connection(self, online: bool, *, after: int = 0) -> None:
        """Wait for the SDK to say that it is connected, or no longer: ``after`` so many reports."""
        wanted = {"what": "connection", "online": online}
        await self.until(lambda: wanted in self.reports[after:], f"online: {online}")

    async def state(self, source: str, wanted: Any) -> None:
        """Wait until a JavaScript expression comes to what is wanted."""
        found = None
        for _ in range(200):
            if (found := await self.run(source)) == wanted:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{source} is {found!r}, not {wanted!r}")

    @property
    def log(self) -> str:
        """The last things that it told, for error messages."""
        shown = [report for report in self.reports if report["what"] != "said"]
        said = [report for report in self.reports if report["what"] == "said"]
        return "\n".join(json.dumps(report)[:300] for report in [*said[:5], *shown[-20:]])

    def count(self, what: str) -> int:
        """Return how often it told something."""
        return sum(report["what"] == what for report in self.reports)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once ``condition`` holds; it is looked at whenever something was told."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not condition():
                    self._check_alive(what)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {what}:\n{self.log}") from None

    # -- how it is reached ------------------------------------------------------------------------

    async def _do(self, verb: str, *args: Any) -> Any:
        answer = await self._ask({"verb": verb, "args": args})
        if answer["what"] == "failed":
            raise Failed(answer["error"])
        return answer["value"]

    @abstractmethod
    async def _ask(self, request: Report) -> Report:
        """Have a request of session.mjs performed and return the report of it."""

    def _check_alive(self, what: str) -> None:
        """Raise ``AssertionError`` when nothing can be told any more. A page always can."""
        return

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._news.set()


class NodeClient(VideoClient):
    """A process of its own; see video_client.mjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        self._process = process
        self._asked = 0
        self._reading = asyncio.create_task(self._read())

    async def _ask(self, request: Report) -> Report:
        self._asked += 1
        number = self._asked
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")

        def answers() -> list[Report]:
            return [report for report in self.reports if report.get("id") == number]

        await self.until(lambda: bool(answers()), str(request))
        return answers()[0]

    async def aclose(self) -> None:
        """Have it disconnect and end."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), LIMIT_S)
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        await self._reading
        assert self._process.returncode == 0, self.log

    def _check_alive(self, what: str) -> None:
        assert not self._reading.done(), f"it ended before {what}:\n{self.log}"

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            # Whatever else it prints (the SDK logs to the console) is kept for error messages.
            text = line.decode().strip()
            is_ours = text.startswith('{"what"')
            self._take(json.loads(text) if is_ours else {"what": "said", "text": text})
        self._news.set()


@asynccontextmanager
async def in_node(
    relay: Reachable, *, api_key: str = API_KEY, **options: Any
) -> AsyncIterator[NodeClient]:
    """Give a client that has not logged in yet, in a process of its own; ``options`` are its."""
    given = {"apiKey": api_key, "clientEventsReportingEnabled": False, **options}
    process = await asyncio.create_subprocess_exec(
        node(), str(FOLDER / "video_client.mjs"), relay.base_url, json.dumps(given),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=8_000_000,
    )  # fmt: skip
    client = NodeClient(process)
    try:
        yield client
    finally:
        await client.aclose()


class PageClient(VideoClient):
    """A page of its own; see pages/client.js."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    async def open(self, site: str, relay: Front) -> None:
        """Load the page, which comes from another origin than the relay's, and make the client."""
        await self.page.expose_function("tellTest", lambda text: self._take(json.loads(text)))
        self.page.on("pageerror", lambda error: self._take({"what": "said", "text": str(error)}))
        await self.page.goto(f"{site}/client.html")
        options = {
            "apiKey": API_KEY,
            "baseURL": f"{relay.base_url}/video",
            "locationHintUrl": f"{relay.base_url}/hint",
        }
        await self.page.evaluate("options => window.open_session(options)", options)

    async def _ask(self, request: Report) -> Report:
        answer = await self.page.evaluate("text => window.perform(text)", json.dumps(request))
        return dict(json.loads(answer))


@asynccontextmanager
async def in_chromium(relay: Front, browser: Browser, site: str) -> AsyncIterator[PageClient]:
    """Give a client that has not logged in yet, in a page of its own."""
    context = await browser.new_context()
    try:
        client = PageClient(await context.new_page())
        await client.open(site, relay)
        yield client
        await client._do("run", "client.disconnectUser()", {})
    finally:
        await context.close()
