"""A gateway on the embedded store and a broker that fails on demand, wired as in ``app``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from prometheus_client import REGISTRY

from relay import metrics
from relay.broker.memory import MemoryStore
from relay.broker.memory_tickets import MemoryTickets
from relay.doors import Door
from relay.forwarded import read_networks
from relay.gateway.hub import Hub
from relay.gateway.session import Rules
from relay.gateway.sockets import SocketLimits, Sockets
from relay.pace import Pace
from tests.gateway.fakes import FAKE_TIME, FakeBroker, FakeWatcher, turns

SECRET = "a secret of at least thirty-two bytes"
NOW_NS = 1_800_000_000 * 10**9


@dataclass
class Gateway:
    """The parts, and a clock in nanoseconds that goes with the loop's."""

    sockets: Sockets
    hub: Hub
    broker: FakeBroker
    store: MemoryStore
    now_ns: Callable[[], int]


def token(user_id: str | None = "john", **claims: Any) -> str:
    return jwt.encode({"user_id": user_id, **claims} if user_id else claims, SECRET)


def counted(metric: str, **labels: str) -> float:
    metrics.settle()
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def closed(why: str) -> float:
    return counted("relay_sockets_closed_total", why=why)


def refused(reason: str) -> float:
    return counted("relay_refused_total", door="socket", reason=reason)


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    """An hour takes no time here, except where real sockets are at work."""
    return FAKE_TIME


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
async def hub(broker: FakeBroker) -> AsyncIterator[Hub]:
    hub = Hub(broker, random.Random(7))
    await broker.start(hub, lambda _: None)
    await hub.start()
    yield hub
    await hub.aclose()


@pytest.fixture
def john() -> FakeWatcher:
    return FakeWatcher("john")


MakeGateway = Callable[..., Gateway]


def unbalanced() -> tuple[float, float]:
    """Return what the books of deliveries and of sockets are off by, with all tests before."""
    owed = counted("relay_deliveries_owed_total")
    for outcome in ("written", "skipped", "dropped"):
        owed -= counted(f"relay_deliveries_{outcome}_total")
    ended = sum(
        sample.value
        for metric in metrics.CLOSED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
    return owed, counted("relay_sockets_opened_total") - ended - counted("relay_sockets")


@asynccontextmanager
async def gateways() -> AsyncIterator[MakeGateway]:
    """Make gateways; afterwards nothing may be left of their sockets, watches and tasks, and
    every delivery and every socket's end is in the books.
    """
    made: list[Gateway] = []
    books = unbalanced()
    before = (metrics.CONNECTIONS._value.get(), metrics.WATCHES._value.get())

    def make(
        limits: dict[str, Any] | None = None, rules: dict[str, Any] | None = None, **more: Any
    ) -> Gateway:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def now_ns() -> int:
            return NOW_NS + int((loop.time() - began) * 1e9)

        broker, store = FakeBroker(node=more.pop("node", "here")), MemoryStore()
        hub = Hub(broker, random.Random(7))
        broker.listener = hub
        sockets = Sockets(
            hub=hub,
            broker=broker,
            store=more.pop("store", store),
            tickets=more.pop("tickets", None) or MemoryTickets(now_ns),
            door=Door("socket", broker),
            rules=Rules(keys={"key": (SECRET,)}, new_id=lambda: "minted", **(rules or {})),
            limits=SocketLimits(**(limits or {})),
            secret=SECRET,
            clock=now_ns,
            trusted=read_networks("127.0.0.1"),
            pace=more.pop("pace", Pace(clock=lambda: 0.0)),
            **more,
        )
        made.append(Gateway(sockets, hub, broker, store, now_ns))
        return made[-1]

    yield make
    for gateway in made:
        await gateway.sockets.drain(5.0)
        await turns()
        await gateway.sockets.aclose()
        await gateway.hub.aclose()
        assert not gateway.sockets._open
        assert not gateway.sockets._by_id
        assert not gateway.sockets._by_user
        assert len(gateway.sockets.tasks) == 0
    assert before == (metrics.CONNECTIONS._value.get(), metrics.WATCHES._value.get())
    assert books == unbalanced()


@pytest.fixture
async def make_gateway() -> AsyncIterator[MakeGateway]:
    async with gateways() as make:
        yield make


@pytest.fixture
async def gateway(make_gateway: MakeGateway) -> Gateway:
    gateway = make_gateway()
    await gateway.sockets.start()
    await gateway.hub.start()
    return gateway
