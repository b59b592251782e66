"""Several processes on one port: start them, restart one that died, stop them together.

Used by ``server`` when the settings ask for more than one worker. The supervisor serves nothing
itself and keeps no state that a worker would miss.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from random import Random
from types import FrameType
from typing import Final

import msgspec

from relay import logs, metrics, server
from relay.retry import backoff
from relay.settings import Settings, SettingsError
from relay.stopping import AT_ONCE, DRAIN, SIGNALS, Stop

log = logs.get(__name__)

STABLE_AFTER_S: Final = 10.0
POLL_S: Final = 0.2
_SPAWN: Final = get_context("spawn")


@dataclass(slots=True)
class _Worker:
    """A worker process; ``ready`` delivers its port once it listens and breaks when it ends.

    ``orders`` takes words of ``stopping``; the worker drains when it breaks, since nobody else
    would ever stop it. ``restart_at`` is when another takes the place of one that died; all times
    are monotonic.
    """

    process: SpawnProcess
    ready: Connection
    orders: Connection
    started: float
    restart_at: float | None = None


def supervise(settings: Settings, demo: bool) -> int:
    """Run ``settings.workers`` processes until a signal ends them; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="relay-metrics-") as folder:
        # Read by prometheus_client in each worker, when it is imported there.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            placeholder = server.listen(settings)
        except OSError as error:
            server.complain(f"cannot listen on port {settings.port}: {error.strerror}")
            return 1
        with placeholder:
            port = placeholder.getsockname()[1]
            return _Supervisor(msgspec.structs.replace(settings, port=port), demo, folder).run()


class _Supervisor:
    """The parent of the workers."""

    def __init__(self, settings: Settings, demo: bool, folder: str) -> None:
        self._settings = settings
        self._demo = demo
        self._folder = folder
        self._random = Random()  # noqa: S311 - jitter, not secrets
        self._failures = 0
        self._word = 0
        self._workers: list[_Worker] = []

    def run(self) -> int:
        """Start the workers, look after them until a signal comes, and stop them."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # It is started with the first worker otherwise, and that lets signals through.
        resource_tracker.ensure_running()
        self._workers = [self._start() for _ in range(self._settings.workers)]
        started = all(self._is_ready(worker) for worker in self._workers)
        if started:
            server.announce(self._settings, self._settings.port, self._demo)
        while started and not self._stopping:
            self._look_after()
        self._end()
        return 0 if started or self._stopping else 1

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._word = DRAIN if self._word == 0 else AT_ONCE

    @property
    def _stopping(self) -> bool:
        return self._word != 0

    def _start(self) -> _Worker:
        ready, told = _SPAWN.Pipe(duplex=False)
        ordered, orders = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_work, args=(self._settings, self._demo, told, ordered))
        # The worker inherits the mask and takes signals once it knows what to do with them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        told.close()
        ordered.close()
        return _Worker(process, ready, orders, time.monotonic())

    def _is_ready(self, worker: _Worker) -> bool:
        """Wait until a worker listens; False when it ended instead, having said why."""
        while not self._stopping:
            if worker.ready.poll(POLL_S):
                try:
                    return bool(worker.ready.recv())
                except EOFError:
                    return False
        return False

    def _look_after(self) -> None:
        """Wait a moment for deaths; after a while start another worker for each one that died."""
        living = [worker for worker in self._workers if worker.restart_at is None]
        connection.wait([worker.process.sentinel for worker in living], POLL_S)
        now = time.monotonic()
        for worker in living:
            if not (worker.process.is_alive() or self._stopping):
                self._mourn(worker, now)
        for index, worker in enumerate(self._workers):
            if worker.restart_at is not None and worker.restart_at <= now and not self._stopping:
                self._workers[index] = self._start()

    def _mourn(self, worker: _Worker, now: float) -> None:
        """Take note of a death, and of when to replace the worker: later when many die young."""
        log.error("worker died", pid=worker.process.pid, code=worker.process.exitcode)
        self._bury(worker)
        stable = now - worker.started > STABLE_AFTER_S
        self._failures = 1 if stable else self._failures + 1
        worker.restart_at = now + backoff(self._failures, self._random, longest_s=10.0)

    def _end(self) -> None:
        """Pass on what this process is told, until all have ended; kill who is left then."""
        # The sockets have one drain_timeout, requests under way another.
        patience_s = self._settings.drain_notice + 2 * self._settings.drain_timeout + 5.0
        deadline, passed_on = time.monotonic() + patience_s, 0
        while (living := self._living()) and time.monotonic() < deadline:
            if passed_on < (word := max(DRAIN, self._word)):
                self._order(living, word)
                passed_on = word
            connection.wait([worker.process.sentinel for worker in living], POLL_S)
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            self._bury(worker)

    def _living(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process.is_alive()]

    def _order(self, workers: list[_Worker], word: int) -> None:
        for worker in workers:
            with suppress(OSError):  # it has just ended
                worker.orders.send(word)

    def _bury(self, worker: _Worker) -> None:
        worker.ready.close()
        worker.orders.close()
        metrics.forget_process(worker.process.pid or 0, self._folder)


def _work(settings: Settings, demo: bool, told: Connection, orders: Connection) -> None:
    """Run one worker; the exit code tells the supervisor how it went."""
    stop = Stop(supervised=True)
    stop.heed_signals()
    logs.configure(settings.log_level, settings.log_format)

    def tell(port: int) -> None:
        told.send(port)
        told.close()

    threading.Thread(target=_take_orders, args=(orders, stop), daemon=True).start()
    try:
        code = server.serve(settings, demo, tell, stop)
    except SettingsError as error:
        server.complain(str(error))
        code = 1
    sys.exit(code)


def _take_orders(orders: Connection, stop: Stop) -> None:
    """Pass on what the supervisor says, and stop this worker when the supervisor was killed."""
    try:
        while True:
            stop.tell(orders.recv())
    except (EOFError, OSError):
        stop.tell(DRAIN)
