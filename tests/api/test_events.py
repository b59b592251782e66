from __future__ import annotations

from typing import Any

import pytest

from relay.events import Position
from tests.edges import KEY, NOW_NS, Edges, counted, edges, refused, token

pytestmark = pytest.mark.anyio

V = "/api/v2/video/call/default/demo/event"
C = "/video/call/default/demo/event"
BALLOONS = {"custom": {"render-animation": "balloons"}, "user_id": "john"}


async def sent(relay: Edges, body: object, **headers: str) -> dict[str, Any]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await relay.post(V, body, headers=token() | given)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


# -- who sends ----------------------------------------------------------------------------------


async def test_a_server_sends_in_the_name_of_a_user(relay: Edges) -> None:
    answer = await sent(relay, BALLOONS)
    (event,) = await relay.published("default:demo")
    assert event["custom"] == {"render-animation": "balloons"}
    assert event["user"]["id"] == "john"
    assert event["type"] == "custom"
    assert event["created_at"] == "2027-01-15T08:00:00.000000000Z"
    assert {name: event[name] for name in ("event_id", "epoch", "offset")} == {
        name: answer[name] for name in ("event_id", "epoch", "offset")
    }
    assert answer.keys() == {"duration", "event_id", "epoch", "offset"}


async def test_the_user_a_server_names_is_created_when_unknown(relay: Edges) -> None:
    await sent(relay, BALLOONS)
    john = await relay.store.user("john")
    assert john is not None
    assert (john.role, john.created_at) == ("user", NOW_NS)


async def test_a_user_that_is_described_is_changed_and_one_that_is_named_is_not(
    relay: Edges,
) -> None:
    described = {"id": "john", "name": "John", "role": "admin", "custom": {"x": 1}}
    await sent(relay, {"custom": {}, "user": described})
    await sent(relay, {"custom": {}, "user_id": "john", "user": None})
    await sent(relay, {"custom": {}, "user_id": "john", "user": {"id": "john", "image": "j.png"}})
    users = [event["user"] for event in await relay.published("default:demo")]
    assert [user["name"] for user in users] == ["John"] * 3
    assert [user["image"] for user in users] == ["", "", "j.png"]
    assert (users[2]["role"], users[2]["custom"]) == ("admin", {"x": 1})


@pytest.mark.parametrize("path", [C, V])
@pytest.mark.parametrize("named", [{}, {"user_id": "john"}, {"user": {"id": "john"}}])
async def test_a_user_sends_as_itself(relay: Edges, path: str, named: dict[str, Any]) -> None:
    response = await relay.post(path, {"custom": {}} | named, headers=token("john"))
    assert response.status_code == 201
    (event,) = await relay.published("default:demo")
    assert event["user"]["id"] == "john"


async def test_a_user_cannot_change_its_profile_by_sending(relay: Edges) -> None:
    body = {"custom": {}, "user": {"id": "john", "role": "admin", "name": "Boss"}}
    await relay.post(C, body, headers=token("john"))
    (event,) = await relay.published("default:demo")
    assert (event["user"]["role"], event["user"]["name"]) == ("user", "")


@pytest.mark.parametrize("named", [{"user_id": "jane"}, {"user": {"id": "jane"}}])
async def test_a_user_cannot_send_as_another(relay: Edges, named: dict[str, Any]) -> None:
    response = await relay.post(C, {"custom": {}} | named, headers=token("john"))
    assert (response.status_code, response.json()["code"]) == (403, 17)
    assert await relay.published("default:demo") == []


async def test_a_token_for_the_call_may_send_to_it(relay: Edges) -> None:
    response = await relay.post(
        C, {"custom": {}}, headers=token("john", call_cids=["default:demo"])
    )
    assert response.status_code == 201


async def test_a_call_need_not_have_been_created(relay: Edges) -> None:
    await sent(relay, BALLOONS)
    assert await relay.store.call("default:demo") is None


async def test_a_strict_relay_knows_only_calls_that_were_created() -> None:
    async with edges(strict_calls=True) as relay:
        response = await relay.post(V, BALLOONS, headers=token())
        assert (response.status_code, response.json()["code"]) == (404, 16)
        await relay.post("/video/call/default/demo", headers=token("john"))
        await sent(relay, BALLOONS)


async def test_nobody_is_created_by_a_refused_event() -> None:
    async with edges(strict_calls=True) as relay:
        await relay.post(V, BALLOONS, headers=token())
        assert await relay.store.user("john") is None


# -- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "headers", "expected"),
    [
        ("body-id", {"idempotency_key": "key-id", "x_client_request_id": "request-id"}, "body-id"),
        (None, {"idempotency_key": "key-id", "x_client_request_id": "request-id"}, "key-id"),
        (None, {"x_client_request_id": "request-id"}, "request-id"),
    ],
)
async def test_the_most_deliberate_id_is_the_events(
    relay: Edges, field: str | None, headers: dict[str, str], expected: str
) -> None:
    body = BALLOONS | {"event_id": field}
    first = await sent(relay, body, **headers)
    again = await sent(relay, body, **headers)
    assert first["event_id"] == expected
    assert {**first, "duration": ""} == {**again, "duration": ""}
    assert len(await relay.published("default:demo")) == 1


async def test_without_an_id_two_taps_are_two_events(relay: Edges) -> None:
    first, second = await sent(relay, BALLOONS), await sent(relay, BALLOONS)
    assert first["event_id"] != second["event_id"]
    assert (first["offset"], second["offset"]) == (1, 2)


async def test_an_id_belongs_to_its_sender(relay: Edges) -> None:
    body = {"custom": {}, "event_id": "e1"}
    for user in ("john", "jane"):
        response = await relay.post(C, body, headers=token(user))
        assert response.status_code == 201
    await sent(relay, body | {"user_id": "john"})
    assert len(await relay.published("default:demo")) == 3


async def test_a_used_id_with_another_custom_is_counted_and_not_published(relay: Edges) -> None:
    before = counted("relay_event_ids_reused", door="api")
    await sent(relay, BALLOONS | {"event_id": "e1"})
    await sent(relay, BALLOONS | {"event_id": "e1", "custom": {"other": 1}})
    assert len(await relay.published("default:demo")) == 1
    assert counted("relay_event_ids_reused", door="api") == before + 1


# -- what is sent -------------------------------------------------------------------------------


async def test_a_volatile_event_has_no_position(relay: Edges) -> None:
    answer = await sent(relay, BALLOONS | {"volatile": True})
    assert answer.keys() == {"duration", "event_id"}
    assert await relay.published("default:demo") == []
    (position,) = await relay.broker.positions(["default:demo"])
    assert isinstance(position, Position)
    assert position.offset == 0


async def test_custom_arrives_as_it_was_sent(relay: Edges) -> None:
    custom = {
        "created_at": NOW_NS,
        "empty": [],
        "none": None,
        "n": 2**70,
        "text": "ä\u2028</script>",
    }
    await sent(relay, {"custom": custom, "user_id": "john"})
    (event,) = await relay.published("default:demo")
    assert event["custom"] == custom


async def test_the_limit_of_custom_is_exact_and_settable() -> None:
    async with edges(custom_limit=20) as relay:
        exact = {"n": "x" * 12}  # {"n":"…"} is 8 bytes
        await sent(relay, {"custom": exact, "user_id": "john"})
        response = await relay.post(V, {"custom": {"n": "x" * 13}, "user_id": "j"}, headers=token())
        assert (response.status_code, response.json()["code"]) == (413, 22)


async def test_fields_nobody_knows_are_ignored(relay: Edges) -> None:
    await sent(relay, BALLOONS | {"type": "call.ended", "call_cid": "a:b", "offset": 7, "x": []})
    (event,) = await relay.published("default:demo")
    assert (event["type"], event["call_cid"], event["offset"]) == ("custom", "default:demo", 1)


async def test_while_redis_is_away_it_says_so_once(relay: Edges) -> None:
    before = refused("api", "unavailable")
    relay.broker.away = True
    response = await relay.post(V, BALLOONS, headers=token())
    assert (response.status_code, response.json()["code"]) == (503, -1)
    assert refused("api", "unavailable") == before + 1


# -- how it is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"stream-auth-type": "JWT"}, {}])
async def test_the_kind_of_authentication_is_read_leniently(
    relay: Edges, kind: dict[str, str]
) -> None:
    headers = {"authorization": token("john")["authorization"]} | kind
    assert (await relay.post(C, {"custom": {}}, headers=headers)).status_code == 201


async def test_the_user_in_the_query_must_be_the_tokens(relay: Edges) -> None:
    for user, status in (("john", 201), ("jane", 403)):
        params = {"api_key": KEY, "user_id": user}
        response = await relay.post(C, {"custom": {}}, headers=token("john"), params=params)
        assert response.status_code == status


async def test_time_moves_on_and_tokens_expire(relay: Edges) -> None:
    headers = token("john", life_s=60)
    assert (await relay.post(C, {"custom": {}}, headers=headers)).status_code == 201
    relay.clock.forward(60)
    response = await relay.post(C, {"custom": {}}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, 40)
