"""The commands and the code of docs/publishing.md, run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from relay.cli.credentials import DEMO
from tests.processes import RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, Frame, opened

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
BALLOONS = {"render-animation": "balloons"}


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo(redis_server: RedisServer) -> Iterator[RelayProcess]:
    redis_server.client().flushall()
    with RelayProcess(
        "demo", redis_url=redis_server.url, api_key=DEMO.key, api_secret=DEMO.secret
    ) as relay:
        yield relay


@pytest.fixture
async def watcher(demo: RelayProcess) -> AsyncIterator[Client]:
    async with opened(demo, f"api_key={DEMO.key}") as client:
        await client.log_in("ada", demo.token("ada"))
        await client.watch("default:demo")
        yield client


async def run(command: list[str] | str) -> str:
    """Run a command to its end and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")}
    done = await run_sync(
        partial(
            subprocess.run,
            command,
            shell=isinstance(command, str),
            capture_output=True,
            text=True,
            timeout=30,
            cwd=PAGE.parents[1],
            env=environment,
        )
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def next_event(watcher: Client, count: int = 1) -> Frame:
    return (await watcher.until_count(count))[count - 1]


async def test_the_redis_cli_lines_reach_a_watcher_kept_and_volatile(
    watcher: Client, redis_server: RedisServer
) -> None:
    kept, live = blocks("redis")
    for number, line in enumerate((kept, live), 1):
        await run(line.replace("redis-cli", f"redis-cli -p {redis_server.port}"))
        event = await next_event(watcher, number)
        assert event["custom"] == BALLOONS
        assert event["user"]["id"] == "john"
        assert event["type"] == "custom"
        assert ("offset" in event) == (line is kept)


async def test_the_curl_line_reaches_a_watcher(watcher: Client, demo: RelayProcess) -> None:
    [script] = blocks("sh")
    script = script.replace("http://127.0.0.1:8000", demo.base_url)
    answer = await run(script.replace("$(relay ", f"$({sys.executable} -m relay "))
    event = await next_event(watcher)
    assert event["custom"] == BALLOONS
    assert f'"offset":{event["offset"]}' in answer


async def test_the_python_blocks_reach_a_watcher(
    watcher: Client, demo: RelayProcess, redis_server: RedisServer
) -> None:
    stream, publishers = blocks("python")
    code = stream.replace("http://127.0.0.1:8000", demo.base_url)
    await run([sys.executable, "-c", code])
    assert (await next_event(watcher))["user"]["id"] == "john"
    blocking, asynchronous = publishers.split("async with")
    main = textwrap.indent(f"async with{asynchronous}", "    ")
    code = f"{blocking}\nasync def main():\n{main}\nimport asyncio\nasyncio.run(main())\n"
    await run([sys.executable, "-c", code.replace("redis://localhost:6379/0", redis_server.url)])
    await watcher.until_count(3)
    # One went through the ingest stream and one was live: they may overtake each other.
    by_kind = {"offset" in event: event["custom"] for event in watcher.events[1:3]}
    assert by_kind == {True: BALLOONS, False: {"x": 0.4, "y": 0.7}}


async def test_the_send_command_reaches_a_watcher(watcher: Client, demo: RelayProcess) -> None:
    assert "`relay send default:demo balloons`" in PAGE.read_text()
    await run(
        [sys.executable, "-m", "relay", "send", "default:demo", "balloons", "--url", demo.base_url]
    )
    assert (await next_event(watcher))["custom"] == BALLOONS
