"""Operators' endpoints on the embedded outbox: who may, what they see, what a replay does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from relay import api, http
from relay.broker import Attempt, Changes, DeadLetter, HookList, Lease, Limits, Reason, Tried
from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
from relay.doors import Door
from relay.hooks import AuthType, Hook, Hooks, HookType
from tests.edges import NOW_NS, Clock

pytestmark = pytest.mark.anyio

TOKEN = "an operator's token"
NOW_MS = NOW_NS // 1_000_000
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Desk:
    client: httpx.AsyncClient
    outbox: MemoryOutbox
    store: MemoryStore
    lease: Lease
    troubles: dict[str, str]

    async def bury(self, *letters: DeadLetter) -> None:
        await self.outbox.record(self.lease, Changes(dead={one.id: one for one in letters}))

    async def get(self, path: str, **params: str) -> Any:
        response = await self.client.get(f"/admin/{path}", params=params, headers=BEARER)
        assert response.status_code == 200, response.text
        return response.json()

    async def replay(self, body: object) -> Any:
        response = await self.client.post("/admin/dead_letters/replay", json=body, headers=BEARER)
        return response.json()

    async def waiting(self) -> list[str]:
        due = await self.outbox.due(self.lease, NOW_MS + 10, 10_000)
        return [each.id for each in due.marks]


def app(
    token: str, outbox: MemoryOutbox, store: MemoryStore, troubles: dict[str, str]
) -> Starlette:
    clock = Clock()
    return Starlette(
        routes=api.operator_routes(
            store=store,
            outbox=outbox,
            troubles=lambda: troubles,
            clock=clock,
            token=token,
            door=Door("api", MemoryBroker(Limits(), clock, "node", outbox=outbox)),
        ),
        exception_handlers=http.exception_handlers(),
    )


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    outbox = MemoryOutbox(Clock())
    store, troubles = MemoryStore(outbox), dict[str, str]()
    await store.save_hooks(Hooks((hook("h1"), hook("h2"))), HookList(), NOW_MS)
    lease = await outbox.lease(0)
    assert lease is not None
    transport = httpx.ASGITransport(app(TOKEN, outbox, store, troubles))
    async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
        yield Desk(client, outbox, store, lease, troubles)


def letter(
    number: int, *, hook_id: str = "h1", body: str | None = '{"type":"custom"}'
) -> DeadLetter:
    attempt = Attempt(NOW_MS + number, "retryable", 503, 12, "busy")
    return DeadLetter(
        id=f"d{number:04}", at_ms=NOW_MS + number, reason=Reason.EXHAUSTED, hook_id=hook_id,
        cid="default:a", type="custom", event_id=f"e{number}", epoch="k", offset=number, body=body,
        tried=Tried(first_ms=NOW_MS, before=3, attempts=(attempt, attempt)),
    )  # fmt: skip


def hook(name: str, *, enabled: bool = True) -> Hook:
    return Hook(id=name, hook_type=HookType.WEBHOOK, enabled=enabled)


# -- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer é",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "hooks"),
        ("GET", "dead_letters"),
        ("GET", "dead_letters/d1"),
        ("POST", "dead_letters/replay"),
    ],
)
async def test_only_an_operator_may(desk: Desk, authorization: str, method: str, path: str) -> None:
    headers = {"authorization": authorization.encode("latin-1")}
    response = await desk.client.request(method, f"/admin/{path}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, 5)


async def test_the_scheme_is_written_as_one_likes(desk: Desk) -> None:
    headers = {"authorization": f"bearer {TOKEN}"}
    assert (await desk.client.get("/admin/hooks", headers=headers)).status_code == 200


async def test_without_a_token_in_the_settings_nobody_may(desk: Desk) -> None:
    transport = httpx.ASGITransport(app("", desk.outbox, desk.store, {}))
    async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
        for headers in ({}, {"authorization": "Bearer "}):
            response = await client.get("/admin/hooks", headers=headers)
            assert response.status_code == 403
            assert "RELAY_ADMIN_TOKEN" in response.json()["message"]


# -- what they see --------------------------------------------------------------------------------


async def test_hooks_are_listed_with_what_is_wrong_and_without_secrets(desk: Desk) -> None:
    queue = Hook(
        id="h2", hook_type=HookType.SQS, sqs_queue_url="https://q.example/1/q", sqs_key="k",
        sqs_secret="very-secret", sqs_auth_type=AuthType.KEYS, created_at=NOW_NS,
    )  # fmt: skip
    webhook = Hook(id="h1", hook_type=HookType.WEBHOOK, webhook_url="https://app.example/")
    await desk.store.save_hooks(Hooks((webhook, queue)), await desk.store.hooks(), NOW_MS)
    desk.troubles["h2"] = "keeps failing"
    listed = (await desk.get("hooks"))["hooks"]
    assert [(hook["id"], hook["trouble"]) for hook in listed] == [
        ("h1", None),
        ("h2", "keeps failing"),
    ]
    assert "very-secret" not in str(listed)
    assert listed[1]["created_at"] == "2027-01-15T08:00:00.000000000Z"


async def test_dead_letters_are_listed_the_oldest_first_with_their_attempts(desk: Desk) -> None:
    await desk.bury(letter(2), letter(1))
    first, second = (await desk.get("dead_letters"))["dead_letters"]
    assert (first["id"], second["id"]) == ("d0001", "d0002")
    assert first == {
        "id": "d0001",
        "reason": "exhausted",
        "died_at": "2027-01-15T08:00:00.001000000Z",
        "hook_id": "h1",
        "call_cid": "default:a",
        "type": "custom",
        "event_id": "e1",
        "epoch": "k",
        "offset": 1,
        "attempts_made": 5,
        "attempts": [
            {
                "attempted_at": "2027-01-15T08:00:00.001000000Z",
                "outcome": "retryable",
                "status": 503,
                "latency_ms": 12,
                "answer": "busy",
            }
        ]
        * 2,
    }


async def test_they_are_chosen_by_hook_time_and_number(desk: Desk) -> None:
    await desk.bury(*[letter(n, hook_id="h1" if n % 2 else "h2") for n in range(6)])

    async def ids(**params: str) -> list[str]:
        return [one["id"] for one in (await desk.get("dead_letters", **params))["dead_letters"]]

    assert await ids(hook_id="h2") == ["d0000", "d0002", "d0004"]
    assert await ids(limit="2") == ["d0000", "d0001"]
    since, until = "2027-01-15T08:00:00.002Z", str(NOW_NS + 4_000_000)
    assert await ids(since=since, until=until) == ["d0002", "d0003"]


async def test_one_is_shown_with_its_event(desk: Desk) -> None:
    await desk.bury(letter(1), letter(2, body=None))
    assert (await desk.get("dead_letters/d0001"))["dead_letter"]["event"] == {"type": "custom"}
    assert (await desk.get("dead_letters/d0002"))["dead_letter"]["event"] is None
    response = await desk.client.get("/admin/dead_letters/d9", headers=BEARER)
    assert (response.status_code, response.json()["code"]) == (404, 16)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"limit": "0"}, "limit must be 1 to 1000"),
        ({"limit": "1001"}, "limit must be 1 to 1000"),
        ({"limit": "x"}, "limit must be 1 to 1000"),
        ({"since": "yesterday"}, "since must be a time"),
        ({"until": "7"}, "until must be a time"),
    ],
)
async def test_a_wrong_question_is_refused(
    desk: Desk, params: dict[str, str], message: str
) -> None:
    response = await desk.client.get("/admin/dead_letters", params=params, headers=BEARER)
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)


# -- replays --------------------------------------------------------------------------------------


async def test_some_are_put_back_by_their_ids(desk: Desk) -> None:
    await desk.bury(letter(1), letter(2), letter(3, body=None))
    told = await desk.replay({"ids": ["d0002", "d0003", "unknown"]})
    assert (told["replayed"], told["bodiless"]) == (1, 1)
    assert await desk.waiting() == ["d0002"]
    left = (await desk.get("dead_letters"))["dead_letters"]
    assert [one["id"] for one in left] == ["d0001", "d0003"]


async def test_all_of_a_hook_are_put_back_page_by_page(desk: Desk) -> None:
    letters = [
        letter(n, hook_id="h1" if n % 3 else "h2", body=None if n % 100 == 1 else "{}")
        for n in range(2500)
    ]
    await desk.bury(*letters)
    told = await desk.replay({"hook_id": "h1", "until": "2027-01-15T09:00:00Z"})
    mine = [one for one in letters if one.hook_id == "h1"]
    gone = [one for one in mine if one.body is None]
    assert (told["replayed"], told["bodiless"]) == (len(mine) - len(gone), len(gone))
    assert len(await desk.waiting()) == len(mine) - len(gone)


async def test_those_of_hooks_that_are_disabled_or_gone_stay(desk: Desk) -> None:
    hooks = Hooks((hook("h1"), hook("h2", enabled=False)))
    assert await desk.store.save_hooks(hooks, await desk.store.hooks(), NOW_MS) is not None
    await desk.bury(letter(1), letter(2, hook_id="h2"), letter(3, hook_id="gone"))
    told = await desk.replay({"hook_id": "", "until": "2027-01-15T09:00:00Z"})
    assert (told["replayed"], told["bodiless"], told["hookless"]) == (1, 0, 2)
    assert await desk.waiting() == ["d0001"]
    left = (await desk.get("dead_letters"))["dead_letters"]
    assert [one["hook_id"] for one in left] == ["h2", "gone"]


async def test_a_span_without_an_end_ends_now(desk: Desk) -> None:
    await desk.bury(letter(0), letter(60_000))
    assert (await desk.replay({"since": "2027-01-15T08:00:00Z"}))["replayed"] == 1
    assert await desk.waiting() == ["d0000"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "say which dead letters"),
        ([], "body must be a JSON object"),
        ({"ids": []}, "ids must be a list of 1 to 1000"),
        ({"ids": [7]}, "ids must be a list"),
        ({"ids": ["x"] * 1001}, "ids must be a list"),
        ({"hook_id": 7}, "hook_id must be the id of a hook"),
        ({"since": "x"}, "since must be a time"),
    ],
)
async def test_a_replay_of_nothing_in_particular_is_refused(
    desk: Desk, body: object, message: str
) -> None:
    await desk.bury(letter(1))
    assert (await desk.replay(body))["message"].startswith(message)
    assert await desk.waiting() == []
