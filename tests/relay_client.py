"""A small client of the socket protocol for tests: log in, watch, send, collect.

Every frame that arrives is held to Stream's protocol and kept in ``frames``, in order; ``until``
waits for one. It answers nothing by itself and does not reconnect: a test says what happens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conformance.required import check_event
from tests.processes import API_KEY, RelayProcess

Frame = dict[str, Any]
LIMIT_S = 10.0


class Refused(Exception):
    """The relay answered a command with an error."""

    def __init__(self, error: Frame) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]
        self.status = error["StatusCode"]


class Client:
    """One socket. ``frames`` is what came, ``events`` what of it was published by somebody.

    ``close_code`` is None while it is open.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.events: list[Frame] = []
        self.connection_id = ""
        self.close_code: int | None = None
        self._fault: AssertionError | None = None
        self._news = asyncio.Event()
        self._last_id = 0
        self._reading = asyncio.create_task(self._read())

    async def log_in(self, user_id: str, token: str, **details: Any) -> Frame:
        """Send the first frame and return the answer to it."""
        details = {"id": user_id, "name": user_id.capitalize(), **details}
        first = {"token": token, "products": ["video"], "user_details": details}
        await self.say(first)
        answer = await self.until(lambda frame: frame["type"].startswith("connection."))
        self.connection_id = answer["connection_id"]
        return answer

    async def say(self, message: object) -> None:
        """Send anything as JSON."""
        await self.socket.send(json.dumps(message))

    async def ask(self, command: str, **fields: Any) -> Frame:
        """Send a command and return the reply; raises ``Refused``."""
        self._last_id += 1
        number = self._last_id
        await self.say({"type": command, "id": number, **fields})
        reply = await self.until(lambda frame: frame.get("id") == number and "user" not in frame)
        if reply["type"] == "error":
            raise Refused(reply["error"])
        return reply

    async def watch(self, cid: str, since: Frame | None = None) -> Frame:
        """Watch a call, after the position in ``since`` (whatever else ``since`` holds)."""
        if since is None:
            return await self.ask("call.watch", call_cid=cid)
        position = {"epoch": since["epoch"], "offset": since["offset"]}
        return await self.ask("call.watch", call_cid=cid, since=position)

    async def send(self, cid: str, custom: Frame, **fields: Any) -> Frame:
        """Send an event and return the reply."""
        return await self.ask("call.send", call_cid=cid, custom=custom, **fields)

    async def until(
        self, wanted: Callable[[Frame], bool], limit_s: float = LIMIT_S, *, after: int = 0
    ) -> Frame:
        """Return the first frame that is wanted among those ``after`` so many, once it is there."""
        seen = after
        async with asyncio.timeout(limit_s):
            while True:
                for frame in self.frames[seen:]:
                    if wanted(frame):
                        return frame
                seen = len(self.frames)
                await self._more()

    async def _more(self) -> None:
        """Wait for another frame."""
        self._check_faultless()
        if self.close_code is not None:
            raise AssertionError(f"closed with {self.close_code}: {self.frames[-3:]}")
        self._news.clear()
        await self._news.wait()

    async def until_count(self, count: int, limit_s: float = LIMIT_S) -> list[Frame]:
        """Return the events, once there are so many."""
        async with asyncio.timeout(limit_s):
            while len(self.events) < count:
                await self._more()
        return self.events

    @property
    def offsets(self) -> list[int]:
        """The offsets of the kept events, as they came."""
        return [event["offset"] for event in self.events if "offset" in event]

    async def until_closed(self, limit_s: float = LIMIT_S) -> int:
        """Return the code with which the socket was closed."""
        async with asyncio.timeout(limit_s):
            await asyncio.shield(self._reading)
        assert self.close_code is not None
        return self.close_code

    async def aclose(self) -> None:
        """Leave."""
        await self.socket.close()
        await self._reading
        self._check_faultless()

    def _check_faultless(self) -> None:
        if self._fault is not None:
            raise self._fault

    async def _read(self) -> None:
        try:
            while True:
                self._take(json.loads(await self.socket.recv()))
        except ConnectionClosed:
            self.close_code = self.socket.close_code
            self._news.set()

    def _take(self, frame: Frame) -> None:
        self.frames.append(frame)
        try:
            check_event(frame)
        except AssertionError as fault:  # raised where the test waits, not where nobody looks
            self._fault = fault
        if "event_id" in frame and "id" not in frame:
            self.events.append(frame)
        self._news.set()


@asynccontextmanager
async def opened(relay: RelayProcess, query: str = "", **options: Any) -> AsyncIterator[Client]:
    """Give a socket that has not logged in yet."""
    url = f"{relay.socket_url}?{query or f'api_key={API_KEY}&stream-auth-type=jwt'}"
    socket = await connect(
        url, compression=None, ping_interval=None, max_size=None, proxy=None, **options
    )
    client = Client(socket)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def connected(
    relay: RelayProcess, user_id: str = "john", token: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    """Give a socket that is logged in."""
    async with opened(relay, **options) as client:
        given = relay.token(user_id) if token is None else token
        answer = await client.log_in(user_id, given)
        assert answer["type"] == "connection.ok", answer
        yield client
