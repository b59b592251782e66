"""Events that keep flowing into calls while a test breaks things, numbered by their sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.processes import RelayProcess

REPEAT_AFTER_S = 0.05
TRIES = 200


class Flow:
    """One event after another into each call, each again under its id until it is accepted."""

    def __init__(self, relay: RelayProcess, cids: list[str], pause_s: float) -> None:
        self._relay = relay
        self._cids = cids
        self._pause_s = pause_s
        self._last = asyncio.Event()
        self.ended = asyncio.Event()
        self.sent = 0
        self.repeats = 0

    async def until(self, count: int) -> None:
        """Return once every call has got so many events."""
        while self.sent < count:
            await asyncio.sleep(self._pause_s)

    async def run(self) -> None:
        headers = {"authorization": self._relay.token(), "stream-auth-type": "jwt"}
        async with httpx.AsyncClient(
            base_url=self._relay.base_url, headers=headers, timeout=5.0
        ) as client:
            while not self._last.is_set():
                n = self.sent + 1
                await asyncio.gather(*(self._send(client, cid, n) for cid in self._cids))
                self.sent = n
                await asyncio.sleep(self._pause_s)
        self.ended.set()

    async def _send(self, client: httpx.AsyncClient, cid: str, n: int) -> None:
        path = f"/api/v2/video/call/{cid.replace(':', '/')}/event?api_key=key"
        body = {"custom": {"n": n}, "user_id": "sender", "event_id": f"{cid}-{n}"}
        for _ in range(TRIES):
            try:
                response = await client.post(path, json=body)
            except httpx.TransportError:
                pass  # the process it went to has ended: another one takes it
            else:
                if response.status_code == 201:
                    return
                assert response.status_code == 503, response.text
            self.repeats += 1
            await asyncio.sleep(REPEAT_AFTER_S)
        raise AssertionError(f"event {n} of {cid} was not accepted")

    def end(self) -> None:
        """Let the round that is under way be the last."""
        self._last.set()


@asynccontextmanager
async def flowing(relay: RelayProcess, cids: list[str], pause_s: float) -> AsyncIterator[Flow]:
    """Keep events flowing through the port of ``relay``, whoever listens there."""
    flow = Flow(relay, cids, pause_s)
    running = asyncio.create_task(flow.run())
    try:
        yield flow
    finally:
        flow.end()
        await running
