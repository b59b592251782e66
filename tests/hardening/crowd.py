"""A process full of watchers: ``python -m tests.hardening.crowd``, and the test's end of it.

The configuration is the first line of its standard input, commands are the following ones; each is
answered by one line of JSON. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.to_thread

from relay import tokens
from tests.hardening.watcher import Moments, Watcher
from tests.processes import API_SECRET

ROOT = Path(__file__).parents[2]
ARRIVE_AT_ONCE = 50
REPORT_LIMIT_S = 90.0


class Crowd:
    """A crowd as the test sees it. ``heed`` is the share that obeys ``connection.draining``."""

    def __init__(
        self, ports: list[int], watchers: int, cids: list[str], *, heed: float = 1.0, seed: int = 0
    ) -> None:
        self._setup = {
            "ports": ports, "watchers": watchers, "cids": cids, "heed": heed, "seed": seed,
        }  # fmt: skip
        self.size = watchers

    def start(self) -> None:
        """Start it, and return once everybody watches."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hardening.crowd"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(self._setup)

    def ask(self, command: dict[str, Any]) -> Any:
        """Send a command and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the crowd has ended with {self._process.wait(5)}"
        return json.loads(line)

    async def report(self, upto: int) -> dict[str, Any]:
        """Wait until everyone has seen event number ``upto``, and return what all have seen."""
        command = {"do": "report", "upto": upto}
        found: dict[str, Any] = await anyio.to_thread.run_sync(self.ask, command)
        return found

    async def cut(self, within_s: float) -> None:
        """Cut everyone at once; each comes back at a random moment within that time."""
        await anyio.to_thread.run_sync(self.ask, {"do": "cut", "within_s": within_s})

    def __enter__(self) -> Crowd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


class _Watchers:
    """The crowd from inside."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._random = random.Random(setup["seed"])
        self._moments = Moments([], [], [])
        self._codes: Counter[int] = Counter()
        self._all = [self._watcher(setup, number) for number in range(setup["watchers"])]

    def _watcher(self, setup: dict[str, Any], number: int) -> Watcher:
        user_id = f"user-{setup['seed']}-{number}"
        return Watcher(
            ports=setup["ports"],
            user_id=user_id,
            token=tokens.issue(API_SECRET, user_id=user_id, now=time.time(), life_s=None),
            cid=setup["cids"][number % len(setup["cids"])],
            heeds=self._random.random() < setup["heed"],
            rng=self._random,
            moments=self._moments,
            codes=self._codes,
        )

    async def arrive(self) -> dict[str, Any]:
        for start in range(0, len(self._all), ARRIVE_AT_ONCE):
            some = self._all[start : start + ARRIVE_AT_ONCE]
            for watcher in some:
                watcher.start()
            await asyncio.gather(*(watcher.watching.wait() for watcher in some))
        self._moments.clear()
        return {"watching": len(self._all)}

    def cut(self, within_s: float) -> dict[str, Any]:
        for watcher in self._all:
            watcher.cut(self._random.uniform(0.001, within_s))
        return {"cut": len(self._all)}

    async def report(self, upto: int) -> dict[str, Any]:
        deadline = time.monotonic() + REPORT_LIMIT_S
        while time.monotonic() < deadline and any(one.last < upto for one in self._all):
            await asyncio.sleep(0.02)
        return {
            "behind": sum(one.last < upto for one in self._all),
            "late": sum(one.first != 1 for one in self._all),
            "missing": sum(one.missing for one in self._all),
            "repeated": sum(one.repeated for one in self._all),
            "told_lost": sum(one.told_lost for one in self._all),
            "moved": sum(one.moved for one in self._all),
            "watching": sum(one.watching.is_set() for one in self._all),
            "codes": dict(self._codes),
            **self._moments._asdict(),
        }


async def _obey(lines: asyncio.StreamReader) -> None:
    """Answer one line after another."""
    watchers = _Watchers(json.loads(await lines.readline()))
    print(json.dumps(await watchers.arrive()), flush=True)
    while line := await lines.readline():
        command = json.loads(line)
        if command["do"] == "cut":
            answer = watchers.cut(command["within_s"])
        else:
            answer = await watchers.report(command["upto"])
        print(json.dumps(answer), flush=True)


async def _main() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    await _obey(lines)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main())
