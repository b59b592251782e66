"""Run ``video_client.mjs`` and talk to it: one line a command, one JSON line a report."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import API_KEY, RelayProcess

Report = dict[str, Any]
FOLDER = Path(__file__).parent
LIMIT_S = 20.0


def node() -> str:
    """Return the path of Node; a test cannot go on without it and the SDKs."""
    if (found := shutil.which("node")) is None:
        pytest.fail("Node.js is missing: 'make test' says what to install")
    if not (FOLDER.parents[1] / "node_modules" / "@stream-io").is_dir():
        pytest.fail("the JavaScript SDKs are missing: npm ci")
    return found


class Failed(Exception):
    """The SDK threw."""


class VideoClient:
    """One process with one ``StreamVideoClient``. ``reports`` has everything it told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def do(self, command: str) -> Report:
        """Have the SDK do something and return what came of it; raises ``Failed``."""
        before = len(self._answers)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        await self._until(lambda: len(self._answers) > before, command)
        answer = self._answers[before]
        if answer["what"] == "failed":
            raise Failed(answer["message"])
        return answer

    async def events(self, count: int) -> list[Report]:
        """Return the events that its handlers got, once there are so many."""

        def got() -> list[Report]:
            return [report["event"] for report in self.reports if report["what"] == "event"]

        await self._until(lambda: len(got()) >= count, f"{count} events")
        return got()

    async def offsets(self, last: int) -> list[int]:
        """Return the offsets of the events it got, once the one at ``last`` is among them."""

        def got() -> list[int]:
            return [r["event"]["offset"] for r in self.reports if r["what"] == "event"]

        await self._until(lambda: last in got(), f"event at {last}")
        return got()

    async def connection(self, online: bool) -> None:
        """Wait for the SDK to say that it is connected, or no longer."""
        await self._until(
            lambda: {"what": "connection", "online": online} in self.reports, f"online: {online}"
        )

    async def aclose(self) -> None:
        """Have it disconnect and end."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.write(b"quit\n")
        try:
            await asyncio.wait_for(self._process.wait(), LIMIT_S)
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        await self._reading
        assert self._process.returncode == 0, self.reports

    @property
    def _answers(self) -> list[Report]:
        return [report for report in self.reports if report["what"] in ("done", "failed")]

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                while not condition():
                    assert not self._reading.done(), f"it ended before {what}: {self.reports}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} in {self.reports}") from None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            # Whatever else it prints (the SDK logs to the console) is kept for error messages.
            text = line.decode().strip()
            is_ours = text.startswith('{"what"')
            self.reports.append(json.loads(text) if is_ours else {"what": "said", "text": text})
            self._news.set()
        self._news.set()


@asynccontextmanager
async def video_client(
    relay: RelayProcess, user: Report, *, telemetry: bool = False, base_url: str = ""
) -> AsyncIterator[VideoClient]:
    """Give a client of a user: ``{"id", "name"}``, with a token or as ``"type": "guest"``.

    ``base_url`` leads to the relay by another way.
    """
    process = await asyncio.create_subprocess_exec(
        node(), str(FOLDER / "video_client.mjs"), base_url or relay.base_url, API_KEY,
        json.dumps(user),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TELEMETRY": "on" if telemetry else "off"},
        limit=1_000_000,
    )  # fmt: skip
    client = VideoClient(process)
    try:
        yield client
    finally:
        await client.aclose()
