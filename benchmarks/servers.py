"""The processes under test: the relay, a Redis for it, and the C floor. Each ends by its own pid.

All that must follow the relay's command line is ``SETTINGS`` and ``Relay``.
"""

import os
import select
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from benchmarks import machine

API_KEY = "bench"
API_SECRET = "bench-secret-bench-secret-bench-secret"
START_S = 20.0

SETTINGS = {
    "RELAY_HOST": "127.0.0.1",
    "RELAY_API_KEY": API_KEY,
    "RELAY_API_SECRET": API_SECRET,
    "RELAY_COMMAND_RATE": "0",
    "RELAY_USER_CONNECTIONS": "0",
}
"""The relay as it is by default, but for the limits that a benchmark would only run into."""


class Broken(Exception):
    """A process of the benchmark did not start, died, or answered something else than agreed."""


@dataclass(slots=True)
class Child:
    """A process of ours, started on one core, that is ended when the ``with`` block is left."""

    command: list[str]
    core: int
    env: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        log: IO[str] | int = self.output.open("w") if self.output else subprocess.PIPE
        with machine.pinned(self.core):
            self.process = subprocess.Popen(
                self.command,
                env=clean_environment() | self.env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT if self.output else None,
                text=True,
                bufsize=1,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def pids(self) -> list[int]:
        """Return this process and its descendants."""
        return machine.family(self.process.pid)

    def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        if self.process.stdin is None:
            raise Broken(f"{self.command[0]} has no stdin")
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, within_s: float = START_S) -> str:
        """Return the next line of its stdout."""
        out = self.process.stdout
        if out is None or not select.select([out], [], [], within_s)[0]:
            raise Broken(f"{self.command[0]} does not answer")
        line = out.readline()
        if not line:
            raise Broken(f"{self.command[0]} ended")
        return line.strip()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is up; raise with the end of what it wrote when it does not get there."""
        end = time.monotonic() + START_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > end:
                why = (self.written().strip().splitlines() or ["it wrote nothing"])[-1]
                error = Broken(f"{' '.join(self.command)} did not start: {why}")
                self.__exit__()
                raise error
            time.sleep(0.05)

    def written(self) -> str:
        """Return the end of what it wrote."""
        return self.output.read_text()[-2000:] if self.output else ""


def clean_environment() -> dict[str, str]:
    """Return our environment without settings of the relay that happen to be in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


def relay_command() -> list[str]:
    """Return the ``relay`` that is installed beside this Python, or the one on the path."""
    beside = Path(sys.executable).with_name("relay")
    return [str(beside) if beside.exists() else "relay"]


class Relay(Child):
    """``relay serve`` on a free port, with the embedded broker or on a Redis.

    The one that is measured has the server's core to itself; a second one shares the load's.
    """

    def __init__(
        self,
        command: list[str],
        scratch: Path,
        redis_port: int | None,
        *,
        measured: bool = True,
        settings: dict[str, str] = SETTINGS,
    ) -> None:
        self.port = machine.free_port()
        env = settings | {"PYTHONUNBUFFERED": "1"}
        if redis_port is not None:
            env["RELAY_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
        super().__init__(
            [*command, "serve", "--port", str(self.port)],
            machine.cores().server if measured else machine.cores().load,
            env,
            scratch / f"relay-{self.port}.log",
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_until(self._ready)
        return self

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


class Redis(Child):
    """A ``redis-server`` of our own on a free port, that writes nothing to disk."""

    def __init__(self, scratch: Path) -> None:
        self.port = machine.free_port()
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "dir": str(scratch)}
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        super().__init__(
            ["redis-server", *flags],
            machine.cores().load,
            output=scratch / f"redis-{self.port}.log",
        )

    @staticmethod
    def installed() -> bool:
        """Return whether there is one to start."""
        return shutil.which("redis-server") is not None

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_until(lambda: "Ready to accept connections" in self.written())
        return self


class Floor(Child):
    """The bare C loop, on the core where the relay is."""

    def __init__(self, program: Path) -> None:
        self.port = self.publisher_port = 0
        super().__init__([str(program)], machine.cores().server)

    def __enter__(self) -> Self:
        super().__enter__()
        _, port, publisher_port = self.hear().split()
        self.port, self.publisher_port = int(port), int(publisher_port)
        return self

    def join(self, frame_bytes: int, frames: float) -> None:
        """Make it take frames of this size and put so many (on average) into one ``send()``."""
        self.tell(f"frame {frame_bytes} {round(max(frames, 1.0) * 1000)}")
        if self.hear() != "ok":
            raise Broken("the floor did not take its orders")
