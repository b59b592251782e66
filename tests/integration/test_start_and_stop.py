"""How a relay starts, refuses to start, and stops; one port for several workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from pathlib import Path

import anyio
import httpx
import pytest
import trustme

from tests.integration.doors import event_path, post
from tests.integration.test_hooks import set_hooks, to
from tests.processes import RelayProcess
from tests.redis_server import RedisServer, free_port, running
from tests.relay_client import connected, opened

pytestmark = pytest.mark.anyio


def complaint(relay: RelayProcess, code: int) -> str:
    """Wait for the relay's end and return the one line it said."""
    relay.spawn()
    assert relay.wait() == code, relay.log
    [line] = [line for line in relay.lines if not line.startswith("{")]
    assert line.startswith("relay: ")
    return line


@pytest.mark.parametrize("workers", [1, 2])
def test_without_its_redis_it_says_so_in_one_line_and_exits_with_1(workers: int) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    relay = RelayProcess(redis_url=url, workers=workers)
    relay.spawn()
    assert relay.wait() == 1, relay.log
    said = {line for line in relay.lines if not line.startswith("{")}
    assert len(said) == 1, relay.log
    assert f"127.0.0.1:{port}" in relay.log
    assert "secret" not in relay.log


def test_a_setting_that_is_none_is_named_and_the_exit_code_is_2() -> None:
    assert "RELAY_WEBHOOK_FRESHNES" in complaint(RelayProcess(webhook_freshnes="1"), 2)


def test_without_a_secret_it_does_not_serve() -> None:
    assert "RELAY_API_SECRET" in complaint(RelayProcess(api_secret=""), 2)


@pytest.mark.parametrize("bad", ["cert", "key"])
def test_a_certificate_that_is_none_is_told_in_one_line(tmp_path: Path, bad: str) -> None:
    certificate = trustme.CA().issue_cert("relay.example")
    files = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    files[bad].write_text("no PEM")
    relay = RelayProcess(tls_cert=files["cert"], tls_key=files["key"])
    assert f"RELAY_TLS_{bad.upper()}='{files[bad]}'" in complaint(relay, 2)


def test_a_time_that_the_kernel_cannot_count_is_told_in_one_line() -> None:
    relay = RelayProcess(slow_timeout=3_000_000)
    assert "RELAY_SLOW_TIMEOUT must be at most 2000000 seconds" in complaint(relay, 2)
    with RelayProcess(slow_timeout=2_000_000):
        pass


def test_the_embedded_broker_does_not_share_its_port() -> None:
    with RelayProcess() as relay:
        assert str(relay.port) in complaint(RelayProcess(port=relay.port), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_while_it_waits_for_a_silent_redis_ends_the_start(
    number: int, workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        relay = RelayProcess(redis_url=url, workers=workers, publish_timeout=60)
        relay.spawn()
        with silent.accept()[0]:
            began = time.monotonic()
            os.kill(relay.pid, number)
            assert relay.wait() == 0, relay.log
            assert time.monotonic() - began < 3
    assert "Traceback" not in relay.log
    assert '"event": "stopped"' in relay.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_closes_the_sockets_with_1012_and_the_exit_code_is_0(
    number: int, relay: RelayProcess
) -> None:
    with RelayProcess() as stopped:
        async with connected(stopped, "john") as john, opened(stopped) as stranger:
            await john.watch("default:stopped")
            os.kill(stopped.pid, number)
            assert await john.until_closed() == 1012
            assert await stranger.until_closed() == 1012
            code = await anyio.to_thread.run_sync(stopped.wait)
            assert code == 0, stopped.log


async def test_a_second_signal_closes_the_sockets_with_1001_and_ends_the_drain(
    redis_server: RedisServer,
) -> None:
    settings = {"redis_url": redis_server.url, "redis_prefix": "twice:", "drain_timeout": 60}
    with RelayProcess(**settings) as relay:
        async with connected(relay, "john") as john:
            relay.terminate()
            await john.until(lambda frame: frame["type"] == "connection.draining")
            relay.terminate()
            assert await john.until_closed() == 1001
            assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log


async def test_a_stopping_process_is_unready_first_and_serves_on(
    redis_server: RedisServer,
) -> None:
    settings = {"redis_url": redis_server.url, "redis_prefix": "notice:", "drain_notice": 60}
    with RelayProcess(**settings) as relay:
        relay.terminate()
        async with httpx.AsyncClient(base_url=relay.base_url) as client:
            with anyio.fail_after(10):
                while (ready := await client.get("/readyz")).status_code == 200:
                    await anyio.sleep(0.02)
        assert ready.json()["checks"]["draining"] == "this process is shutting down"
        assert ready.headers["connection"] == "close"
        async with connected(relay, "john") as john:
            await john.watch("default:notice")
            relay.terminate()
            assert await john.until_closed() == 1001
        assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log


async def test_a_client_that_does_not_answer_the_close_does_not_hold_up_the_stop() -> None:
    with RelayProcess(drain_timeout=1) as relay:
        async with connected(relay, "john") as john:
            john.socket.transport.pause_reading()
            began = time.monotonic()
            relay.terminate()
            assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log
            assert time.monotonic() - began < 5
            john.socket.transport.resume_reading()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_redis_that_is_frozen_does_not_hold_up_the_stop(workers: int) -> None:
    """Everybody who has something to say to Redis then: sockets, seats, deliveries, an answer."""
    limit_s = 0 + 2 * 1 + 5  # as docs/operations.md has it, for RELAY_DRAIN_TIMEOUT=1
    settings = {"publish_timeout": 30, "drain_timeout": 1, "hook_allow": "127.0.0.0/8"}
    with running() as redis:
        relay = RelayProcess(redis_url=redis.url, workers=workers, **settings).start()
        await set_hooks(relay, to(f"http://127.0.0.1:{free_port()}/"))
        async with connected(relay, "john") as john:
            for n in range(20):
                await john.watch(f"default:frozen-{n}")
                await john.send(f"default:frozen-{n}", {"n": n})
            redis.freeze()
            body = {"custom": {"n": 1}, "user_id": "jane"}
            asked = asyncio.create_task(post(relay, event_path("default:frozen-0"), body))
            while await status_of(relay, "/readyz") == 200:
                await anyio.sleep(0.05)
            began = time.monotonic()
            relay.terminate()
            assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log
            assert time.monotonic() - began < limit_s, relay.log
            assert relay.log.count('"event": "stopped"') == workers, relay.log
            assert (await asked).status_code >= 500


async def status_of(relay: RelayProcess, path: str) -> int:
    async with httpx.AsyncClient(base_url=relay.base_url) as client:
        return (await client.get(path)).status_code


async def test_workers_share_one_port_and_any_of_them_answers_for_all(
    redis_server: RedisServer,
) -> None:
    with RelayProcess(redis_url=redis_server.url, redis_prefix="workers:", workers=2) as relay:
        async with connected(relay, "john") as john:
            await john.watch("default:workers")
            for n in range(1, 21):
                body = {"custom": {"n": n}, "user_id": "jane"}
                response = await post(relay, event_path("default:workers"), body)
                assert response.status_code == 201
            await john.until_count(20)
            assert john.offsets == list(range(1, 21))
            for _ in range(6):
                assert (
                    await metric(relay, 'relay_events_published_total{door="api",kind="kept"}')
                    == 20
                )
                assert await metric(relay, "relay_connections") == 1
            assert len(await worker_pids(relay)) == 2


async def test_a_worker_that_dies_is_replaced(redis_server: RedisServer) -> None:
    with RelayProcess(redis_url=redis_server.url, redis_prefix="dying:", workers=2) as relay:
        before = await worker_pids(relay)
        os.kill(min(before), signal.SIGKILL)
        await anyio.to_thread.run_sync(relay.wait_for_line, "worker died")
        with anyio.fail_after(10):
            while len(now := await worker_pids(relay)) < 2 or now == before:
                await anyio.sleep(0.05)
        await anyio.to_thread.run_sync(
            relay.wait_for, lambda: relay.log.count('"event": "listening"') == 3, 10, "whole again"
        )
        relay.terminate()
        assert await anyio.to_thread.run_sync(relay.wait) == 0, relay.log


async def metric(relay: RelayProcess, name: str) -> float:
    async with httpx.AsyncClient(base_url=relay.base_url) as client:
        text = (await client.get("/metrics")).text
    [value] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


async def worker_pids(relay: RelayProcess) -> set[int]:
    """Return the processes that serve, which are children of the supervisor."""
    text = await anyio.Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text()
    found = set()
    for pid in map(int, text.split()):
        command = await anyio.Path(f"/proc/{pid}/cmdline").read_text()
        if "spawn_main" in command:
            found.add(pid)
    return found
