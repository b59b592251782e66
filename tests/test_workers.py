"""Several workers on one port: looked after, replaced, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest

from tests.processes import RelayProcess
from tests.redis_server import RedisServer, redis_server, running
from tests.relay_client import Client, connected

__all__ = ["redis_server"]


def workers_of(relay: RelayProcess) -> set[int]:
    """Return the processes that serve: spawned children of the supervisor."""
    children = Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in command_of(int(pid))}


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def eventually(holds: Callable[[], bool], what: str, limit_s: float = 15.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


@pytest.fixture
def relay(redis_server: RedisServer) -> Iterator[RelayProcess]:
    process = RelayProcess(redis_url=redis_server.url, redis_prefix="workers-test:", workers=2)
    process.start()
    yield process
    if command_of(process.pid):
        process.terminate()
    process.wait()


def shown(relay: RelayProcess, sample: str) -> float | None:
    """Return a sample of ``/metrics``, None while there is none."""
    try:
        text = httpx.get(f"{relay.base_url}/metrics", timeout=5).text
    except httpx.TransportError:
        return None  # by a worker that has just ended
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(sample)]
    return float(values[0]) if values else None


def test_any_worker_tells_whether_all_are_ready_and_none_speaks_for_the_dead() -> None:
    hops = ("draining", "broker", "publish", "subscription")
    samples = [f'relay_ready{{hop="{hop}"}}' for hop in hops] + ["relay_redis_up "]
    with running() as redis:
        relay = RelayProcess(redis_url=redis.url, redis_prefix="ready-test:", workers=2)
        relay.start()
        try:
            eventually(lambda: [shown(relay, s) for s in samples] == [1.0] * 5, "all is well")
            redis.freeze()
            eventually(
                lambda: [shown(relay, s) for s in samples] == [1.0, 0.0, 0.0, 1.0, 0.0], "no Redis"
            )
            os.kill(min(workers_of(relay)), signal.SIGKILL)
            redis.thaw()
            eventually(lambda: [shown(relay, s) for s in samples] == [1.0] * 5, "all is well again")
        finally:
            relay.terminate()
            relay.wait()


def answers(relay: RelayProcess) -> bool:
    with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as probe:
        probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
        return probe.recv(64).startswith(b"HTTP/1.1 200")


def test_a_worker_that_is_killed_is_replaced_while_the_other_serves(relay: RelayProcess) -> None:
    victim, survivor = sorted(workers_of(relay))
    os.kill(victim, signal.SIGKILL)
    eventually(
        lambda: len(workers_of(relay)) == 2 and victim not in workers_of(relay), "a new worker"
    )
    assert survivor in workers_of(relay)
    relay.wait_for(lambda: relay.log.count('"event": "listening"') == 3, 15, "whole again")
    for _ in range(10):
        assert answers(relay)


def test_a_signal_while_a_dead_worker_waits_for_its_heir_ends_all_at_once(
    relay: RelayProcess,
) -> None:
    """The pause grows with every early death; nobody who stops the relay waits it out."""
    for _ in range(4):
        eventually(lambda: len(workers_of(relay)) == 2, "two workers")
        os.kill(min(workers_of(relay)), signal.SIGKILL)
        eventually(lambda: len(workers_of(relay)) < 2, "a death")
    before = workers_of(relay)
    began = time.monotonic()
    relay.terminate()
    assert relay.wait() == 0
    assert time.monotonic() - began < 5
    assert not any(command_of(pid) for pid in before)


def test_both_workers_dying_is_no_end(relay: RelayProcess) -> None:
    for pid in workers_of(relay):
        os.kill(pid, signal.SIGKILL)
    relay.wait_for(lambda: relay.log.count('"event": "listening"') == 4, 20, "whole again")
    assert answers(relay)
    relay.terminate()
    assert relay.wait() == 0


def test_workers_do_not_outlive_their_supervisor(relay: RelayProcess) -> None:
    workers = workers_of(relay)
    os.kill(relay.pid, signal.SIGKILL)
    eventually(lambda: not any(command_of(pid) for pid in workers), "the end of the workers")


class Grouped(RelayProcess):
    own_group = True


@pytest.fixture
def grouped(redis_server: RedisServer) -> Iterator[Grouped]:
    settings = {"redis_url": redis_server.url, "redis_prefix": "grouped:", "workers": 2}
    with Grouped(**settings) as process:
        yield process


async def drains(john: Client) -> None:
    await john.until(lambda frame: frame["type"] == "connection.draining")


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_to_the_whole_group_is_one_signal(number: int, grouped: Grouped) -> None:
    """Ctrl-C and systemd reach the workers too; the supervisor's word is then no second one."""
    async with connected(grouped, "john") as john:
        await john.watch("default:group")
        grouped.signal_group(number)
        await drains(john)
        assert await john.until_closed() == 1012
    assert await anyio.to_thread.run_sync(grouped.wait) == 0, grouped.log
    assert "Traceback" not in grouped.log


@pytest.mark.anyio
@pytest.mark.parametrize("whole_group", [False, True])
async def test_two_signals_end_the_drain_of_the_workers(
    whole_group: bool, redis_server: RedisServer
) -> None:
    settings = {"redis_url": redis_server.url, "redis_prefix": "twice:", "workers": 2}
    with Grouped(**settings, drain_timeout=60) as relay:
        signalled = relay.signal_group if whole_group else partial(os.kill, relay.pid)
        async with connected(relay, "john") as john:
            signalled(signal.SIGTERM)
            await drains(john)
            signalled(signal.SIGTERM)
            assert await john.until_closed() == 1001
        began = time.monotonic()
        assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log
        assert time.monotonic() - began < 5


@pytest.mark.anyio
async def test_a_worker_that_is_told_alone_drains_and_is_replaced(grouped: Grouped) -> None:
    async with connected(grouped, "john") as john:
        before = workers_of(grouped)
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        await drains(john)
        assert await john.until_closed() == 1012
    await anyio.to_thread.run_sync(
        grouped.wait_for, lambda: grouped.log.count('"event": "listening"') == 4, 20, "whole again"
    )
    assert not before & workers_of(grouped)
    grouped.signal_group(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(grouped.wait) == 0, grouped.log


def test_a_signal_to_the_group_while_workers_start_ends_them_quietly(
    redis_server: RedisServer,
) -> None:
    relay = Grouped(redis_url=redis_server.url, redis_prefix="early:", workers=2)
    relay.spawn()
    eventually(lambda: bool(command_of(relay.pid)) and bool(workers_of(relay)), "a worker")
    relay.signal_group(signal.SIGINT)
    assert relay.wait() == 0, relay.log
    assert "Traceback" not in relay.log


def test_a_port_that_is_taken_is_told_in_one_line(redis_server: RedisServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        relay = RelayProcess(redis_url=redis_server.url, workers=2, port=port)
        relay.spawn()
        assert relay.wait() == 1
        assert f"relay: cannot listen on port {port}" in relay.log
        assert "Traceback" not in relay.log
