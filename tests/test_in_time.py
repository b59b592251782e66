"""A sender waits for a stated time, whatever Redis does and however often it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from relay import http, wire
from relay.broker import Limits
from relay.broker.memory import MemoryBroker
from relay.doors import Door
from relay.errors import Refused, Unavailable
from tests.edges import Edges, counted, edges, refused, signed, token
from tests.gateway.fakes import FAKE_TIME

pytestmark = pytest.mark.anyio

LIMIT_S: Final = 3.0
CID: Final = "default:slow"
WEBHOOK: Final = wire.encode(
    {
        "type": "call.session_started",
        "call_cid": CID,
        "created_at": "2027-01-15T08:00:00Z",
        "call": {"created_by": {"id": "jane"}},
    }
)


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return FAKE_TIME


@pytest.fixture
def door() -> Door:
    return Door("test", MemoryBroker(Limits(), lambda: 0, "node"), LIMIT_S)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_is_over_in_time_is_left_alone(door: Door) -> None:
    async with door.in_time():
        await asyncio.sleep(LIMIT_S - 0.1)
    with pytest.raises(Refused):
        async with door.in_time():
            raise Refused("no")


async def test_what_takes_longer_is_unavailable_and_counted_once(door: Door) -> None:
    before, began = refused("test", "unavailable"), now()
    with pytest.raises(Unavailable, match="within 3 s"):
        async with door.in_time():
            await asyncio.Event().wait()
    assert now() - began == pytest.approx(LIMIT_S)
    assert refused("test", "unavailable") == before + 1


async def test_time_that_has_passed_before_counts(door: Door) -> None:
    began = now()
    await asyncio.sleep(2)
    with pytest.raises(Unavailable):
        async with door.in_time(began):
            await asyncio.Event().wait()
    assert now() - began == pytest.approx(LIMIT_S)


async def test_a_timeout_of_somebody_else_is_no_answer_of_redis(door: Door) -> None:
    with pytest.raises(TimeoutError):
        async with door.in_time():
            raise TimeoutError


@pytest.mark.parametrize("body_s", [0.0, 8.0])
async def test_the_time_that_a_body_takes_is_its_sender_s(door: Door, body_s: float) -> None:
    async def receive() -> Message:
        await asyncio.sleep(body_s)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def handler(request: Request) -> Response:
        await asyncio.sleep(1)
        await http.read_body(request, 100)
        await asyncio.sleep(LIMIT_S)
        raise AssertionError("unreachable")

    began = now()
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(Unavailable):
        await http.publishing(handler, door)(Request(scope, receive))
    assert now() - began == pytest.approx(LIMIT_S + body_s)


# -- the doors -------------------------------------------------------------------------------------


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Edges, Callable[[float], None]]]:
    """Give the edges, and what sets how long each answer of the store and the broker takes."""
    async with edges() as made:
        delay_s = 0.0

        def slowed(method: Any) -> Any:
            async def ask(*given: Any, **more: Any) -> Any:
                await asyncio.sleep(delay_s)
                return await method(*given, **more)

            return ask

        def set_delay(seconds: float) -> None:
            nonlocal delay_s
            delay_s = seconds

        for name in ("call", "user", "save_user", "create_call", "change_call"):
            setattr(made.store, name, slowed(getattr(made.store, name)))
        made.broker.publish = slowed(made.broker.publish)  # type: ignore[method-assign]
        yield made, set_delay


@pytest.mark.parametrize("answer_s", [0.6 * LIMIT_S, 3600.0], ids=["slowly", "never"])
@pytest.mark.parametrize(
    ("name", "path", "body", "user_id"),
    [
        ("api", "event", {"custom": {}, "user_id": "john"}, None),
        ("api", "event", {"custom": {}}, "john"),
        ("api", "reaction", {"type": "wave"}, "john"),
        ("api", "", {"data": {"created_by_id": "john"}}, None),
        ("webhook", "", {}, None),
    ],
    ids=["event", "own_event", "reaction", "create", "webhook"],
)
async def test_a_request_is_answered_in_time_where_redis_answers(
    slow: tuple[Edges, Callable[[float], None]],
    name: str,
    path: str,
    body: dict[str, Any],
    user_id: str | None,
    answer_s: float,
) -> None:
    made, set_delay = slow
    set_delay(answer_s)
    before, began = refused(name, "unavailable"), now()
    accepted = counted("relay_events_accepted", door=name)
    ended = counted("relay_events_failed", door=name)
    if name == "webhook":
        response = await made.client.post(
            "/webhooks/stream", content=WEBHOOK, headers=signed(WEBHOOK)
        )
    else:
        url = f"/video/call/default/slow/{path}".rstrip("/")
        response = await made.client.post(
            url, json=body, params={"api_key": "key"}, headers=token(user_id)
        )
    assert now() - began == pytest.approx(LIMIT_S)
    assert response.status_code == 503
    assert response.json()["code"] == -1
    assert refused(name, "unavailable") == before + 1
    accepted = counted("relay_events_accepted", door=name) - accepted
    assert counted("relay_events_failed", door=name) - ended == accepted
