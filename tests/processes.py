"""Start real relay processes for tests, collect what they print, and end them by their own pid.

Blocking on purpose: fixtures of any scope can use it. A test on the event loop that has to go on
reading its sockets meanwhile gives ``stop`` to ``anyio.to_thread.run_sync``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from relay import tokens

API_KEY = "key"
API_SECRET = "a secret of at least thirty-two bytes"
START_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0

_LISTENING = re.compile(r"relay: listening on (https?://\S+:(\d+))")
_ROOT = Path(__file__).parent.parent


class RelayProcess:
    """One ``relay serve`` (or ``demo``) with settings by their names, e.g. ``workers=2``.

    It listens on a free port of 127.0.0.1 and knows the API key ``API_KEY`` unless told otherwise.
    ``module`` is what Python runs, with the command as its argument; ``own_group`` is whether
    ``signal_group`` may be used, which would reach the tests too otherwise.
    """

    module = "relay"
    own_group = False

    def __init__(self, command: str = "serve", **settings: object) -> None:
        self._command = command
        self._settings = {
            "port": 0, "api_key": API_KEY, "api_secret": API_SECRET, "log_format": "json",
            **settings,
        }  # fmt: skip
        self.lines: list[str] = []
        self.base_url = ""
        self.port = 0
        self._news = threading.Condition()
        self._readers: list[threading.Thread] = []

    def start(self) -> RelayProcess:
        """Start, and return once it listens."""
        self.spawn()
        self.wait_for(lambda: bool(self.base_url), START_LIMIT_S, "listening")
        return self

    def spawn(self) -> None:
        """Start without waiting for anything."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, self._command],
            cwd=_ROOT,
            env=_environment(self._settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=self.own_group,
        )
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            reader = threading.Thread(target=self._collect, args=(stream,), daemon=True)
            reader.start()
            self._readers.append(reader)

    @property
    def pid(self) -> int:
        """The process, or the supervisor of several workers."""
        return self._process.pid

    @property
    def socket_url(self) -> str:
        """Where the sockets connect, without a query."""
        return self.base_url.replace("http", "ws", 1) + "/video/connect"

    @property
    def log(self) -> str:
        """Everything it has printed."""
        return "\n".join(self.lines)

    def token(self, user_id: str | None = None, life_s: float | None = None, **claims: Any) -> str:
        """Return a token for this relay: a server's without ``user_id``."""
        secret = str(self._settings["api_secret"])
        return tokens.issue(secret, user_id=user_id, now=time.time(), life_s=life_s, **claims)

    def resident_bytes(self) -> int:
        """Return how much memory it holds right now."""
        return _status(self.pid, "VmRSS")

    def peak_bytes(self) -> int:
        """Return the most memory it has ever held."""
        return _status(self.pid, "VmHWM")

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.send_signal(signal.SIGTERM)

    def signal_group(self, number: int) -> None:
        """Signal it and all that it has started, as Ctrl-C and systemd do."""
        assert self.own_group
        os.killpg(self.pid, number)

    def freeze(self) -> None:
        """Let it stand still: its sockets stay open and it answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self.wait()

    def wait(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Return its exit code."""
        code = self._process.wait(limit_s)
        for reader in self._readers:
            reader.join(limit_s)
        return code

    def stop(self) -> None:
        """Ask it to stop and check that it ended well: in time, with exit code 0, no traceback."""
        if self._process.poll() is None:
            self.terminate()
        code = self.wait()
        assert code == 0, f"exit code {code}\n{self.log}"
        assert "Traceback" not in self.log, self.log
        assert '"level": "error"' not in self.log, self.log

    def wait_for(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Return once ``condition`` holds; it is looked at whenever a line was printed."""
        deadline = time.monotonic() + limit_s
        with self._news:
            while not condition():
                rest = deadline - time.monotonic()
                if rest <= 0 or self._process.poll() is not None:
                    raise AssertionError(f"the relay is not {what}:\n{self.log}")
                self._news.wait(min(rest, 0.1))

    def wait_for_line(self, text: str, limit_s: float = 10.0) -> None:
        """Return once it has printed a line with ``text``."""
        self.wait_for(lambda: text in self.log, limit_s, f"saying {text!r}")

    def _collect(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    if found := _LISTENING.match(line):
                        self.base_url, self.port = found[1], int(found[2])
                    self._news.notify_all()

    def __enter__(self) -> RelayProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it if the test has not. A test that failed shows the log, another checks the end."""
        ended = self._process.poll()
        if kind is not None:
            print(f"-- {self.base_url or 'relay'} --", self.log, sep="\n")
        if kind is not None and ended is None:
            self.kill()
        elif ended is None:
            self.stop()


@contextmanager
def relay_pair(redis_url: str, **settings: object) -> Iterator[tuple[RelayProcess, RelayProcess]]:
    """Run two relays on one Redis, as compose.yaml does."""
    with (
        RelayProcess(redis_url=redis_url, **settings) as one,
        RelayProcess(redis_url=redis_url, **settings) as two,
    ):
        yield one, two


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return our own environment without its settings, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    ours = {f"RELAY_{name.upper()}": _text(value) for name, value in settings.items()}
    return {**kept, **ours}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _status(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/{pid}/status")
