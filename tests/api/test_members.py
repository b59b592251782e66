from __future__ import annotations

from typing import Any

import pytest

from relay.calls import MemberChange
from tests.edges import Edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
V = "/api/v2/video/call/default/demo"
JOHN, JANE = token("john"), token("jane")


@pytest.fixture
async def call(relay: Edges) -> Edges:
    """A call of john's with the member jane."""
    body = {"data": {"members": [{"user_id": "jane", "custom": {"seat": 1}}]}}
    assert (await relay.post(C, body, headers=JOHN)).status_code == 201
    return relay


async def change(
    relay: Edges, body: dict[str, Any], headers: dict[str, str] = JOHN, status: int = 201
) -> Any:
    response = await relay.post(f"{C}/members", body, headers=headers)
    assert response.status_code == status
    return response.json()


async def remembered(relay: Edges) -> tuple[MemberChange, ...]:
    call = await relay.store.call("default:demo")
    assert call is not None
    return call.member_changes


async def members(relay: Edges) -> list[str]:
    call = await relay.store.call("default:demo")
    assert call is not None
    return [member.user_id for member in call.members]


async def test_a_member_is_added_and_all_members_hear_of_it(call: Edges) -> None:
    answer = await change(call, {"update_members": [{"user_id": "jim", "role": "host"}]})
    [added] = answer["members"]
    assert (added["user_id"], added["role"], added["user"]["id"]) == ("jim", "host", "jim")
    event = (await call.published("default:demo"))[-1]
    assert event["type"] == "call.member_added"
    assert [member["user_id"] for member in event["members"]] == ["jim"]
    assert call.announcer.members[-1] == ("call.member_added", ["jane", "jim"])


async def test_a_member_is_changed_field_by_field(call: Edges) -> None:
    answer = await change(call, {"update_members": [{"user_id": "jane", "role": "host"}]})
    assert answer["members"][0]["custom"] == {"seat": 1}
    assert (await call.kinds())[1:] == ["call.member_updated", "call.member_updated_permission"]
    event = (await call.published("default:demo"))[-1]
    assert "end-call" in event["capabilities_by_role"]["host"]


async def test_a_change_that_changes_nothing_is_announced_to_nobody(call: Edges) -> None:
    await change(call, {"update_members": [{"user_id": "jane", "custom": {"seat": 1}}]})
    await change(call, {"remove_members": ["jim"]})
    assert await call.kinds() == ["call.created"]


async def test_a_member_is_removed_and_hears_of_it_too(call: Edges) -> None:
    await change(call, {"remove_members": ["jane"], "update_members": [{"user_id": "jim"}]})
    assert await members(call) == ["jim"]
    assert (await call.kinds())[1:] == ["call.member_added", "call.member_removed"]
    assert (await call.published("default:demo"))[-1]["members"] == ["jane"]
    assert call.announcer.members[-1] == ("call.member_removed", ["jane", "jim"])


async def test_a_change_that_could_not_be_announced_is_announced_by_its_repeat(
    call: Edges,
) -> None:
    wishes = {
        "update_members": [{"user_id": "jane", "role": "host"}, {"user_id": "jim"}],
        "remove_members": ["joe"],
    }
    await change(call, {"update_members": [{"user_id": "joe"}]})
    call.broker.away = True
    await change(call, wishes, status=503)
    call.broker.away = False
    await change(call, wishes)
    kinds = ["added", "updated", "updated_permission", "removed"]
    assert (await call.kinds())[2:] == [f"call.member_{kind}" for kind in kinds]
    assert call.announcer.members[-1] == ("call.member_removed", ["jane", "jim", "joe"])
    await change(call, wishes)
    await change(call, {"remove_members": ["joe"]})
    assert len(await call.kinds()) == 6, "announced once"


async def test_an_old_change_is_not_announced_again(call: Edges) -> None:
    """The ids of what was announced are forgotten at some time."""
    await change(call, {"remove_members": ["jane"]})
    call.announcer.known.clear()  # another process is asked
    call.clock.forward(7201)
    call.broker.away = True
    await change(call, {"remove_members": ["jane"]})


async def test_a_change_is_announced_by_a_repeat_that_comes_an_hour_and_many_changes_later(
    call: Edges,
) -> None:
    call.broker.away = True
    await change(call, {"update_members": [{"user_id": "jim"}]}, status=503)
    call.broker.away = False
    for n in range(19):
        await change(call, {"update_members": [{"user_id": f"user-{n}"}]})
        call.clock.forward(180)
    assert len(await call.kinds()) == 1 + 19
    await change(call, {"update_members": [{"user_id": "jim"}]})
    [event] = (await call.published("default:demo"))[1 + 19 :]
    assert (event["type"], event["members"][0]["user_id"]) == ("call.member_added", "jim")


async def test_what_is_known_to_be_announced_asks_nobody_when_it_is_repeated(call: Edges) -> None:
    wishes = {
        "update_members": [{"user_id": "jane", "role": "host"}, {"user_id": "jim"}],
        "remove_members": ["joe"],
    }
    await change(call, {"update_members": [{"user_id": "joe"}]})
    await change(call, wishes)
    call.broker.away = True
    await change(call, wishes)
    call.announcer.known.clear()
    await change(call, wishes, status=503)


async def test_the_changes_that_a_call_remembers_are_bounded(call: Edges) -> None:
    for n in range(25):
        await change(call, {"update_members": [{"user_id": f"user-{n}"}]})
    changes = await remembered(call)
    assert [each.added for each in changes] == [(f"user-{n}",) for n in range(5, 25)]
    everybody = [{"user_id": f"one-{n}"} for n in range(100)]
    for n in range(8):
        for each in everybody:
            each["custom"] = {"n": n}
        await change(call, {"update_members": everybody})
    changes = await remembered(call)
    assert len(changes) == 20
    assert sum(len(each.added) + len(each.updated) for each in changes) == 812
    for n in range(8, 14):
        for each in everybody:
            each["custom"] = {"n": n}
        await change(call, {"update_members": everybody})
    assert [len(each.updated) for each in await remembered(call)] == [100] * 10


async def test_what_another_request_changed_is_not_announced_by_this_one(call: Edges) -> None:
    call.broker.away = True
    await change(call, {"update_members": [{"user_id": "jim"}, {"user_id": "joe"}]}, status=503)
    await change(call, {"update_members": [{"user_id": "jim"}]})
    await change(call, {"remove_members": ["max"]})


@pytest.mark.parametrize(
    ("between", "kinds"),
    [
        ({"update_members": [{"user_id": "jim", "role": "host"}]},
         ["updated", "updated_permission", "added"]),
        ({"remove_members": ["joe"]}, ["removed", "added", "added"]),
    ],
)  # fmt: skip
async def test_a_repeat_announces_its_own_change_whatever_came_in_between(
    call: Edges, between: dict[str, Any], kinds: list[str]
) -> None:
    both = {"update_members": [{"user_id": "jim"}, {"user_id": "joe"}]}
    call.broker.away = True
    await change(call, both, status=503)
    call.broker.away = False
    await change(call, between)
    await change(call, both)
    assert (await call.kinds())[1:] == [f"call.member_{kind}" for kind in kinds]
    added = [
        e["members"]
        for e in await call.published("default:demo")
        if e["type"] == "call.member_added"
    ]
    assert "jim" in {member["user_id"] for members in added for member in members}


async def test_the_last_word_on_a_member_counts(call: Edges) -> None:
    wishes = [{"user_id": "jim", "role": "host"}, {"user_id": "jim", "role": "speaker"}]
    [jim] = (await change(call, {"update_members": wishes}))["members"]
    assert jim["role"] == "speaker"


async def test_who_does_not_manage_the_call_can_only_leave(call: Edges) -> None:
    assert (await change(call, {"update_members": [{"user_id": "x"}]}, JANE, 403))["code"] == 17
    assert (await change(call, {"remove_members": ["john"]}, JANE, 403))["code"] == 17
    await change(call, {"remove_members": ["jane"]}, JANE)
    assert await members(call) == []


async def test_a_call_has_room_for_a_thousand_members(call: Edges) -> None:
    for start in range(0, 900, 100):
        many = [{"user_id": f"u{start + n}"} for n in range(100)]
        await change(call, {"update_members": many})
    answer = await change(
        call, {"update_members": [{"user_id": f"v{n}"} for n in range(100)]}, status=400
    )
    assert answer["message"].startswith("update_members: the call would have 1001 members")
    assert len(await members(call)) == 901


# -- finding ------------------------------------------------------------------------------------


async def find(relay: Edges, status: int = 201, **query: Any) -> Any:
    body = {"type": "default", "id": "demo", **query}
    response = await relay.post("/api/v2/video/call/members", body, headers=token())
    assert response.status_code == status
    return response.json()


async def test_members_are_found_by_filter_sort_and_page(call: Edges) -> None:
    many = [{"user_id": f"u{n}", "role": "guest"} for n in range(5)]
    await change(call, {"update_members": many})
    query = {
        "filter_conditions": {"role": "guest"},
        "sort": [{"field": "user_id", "direction": -1}],
        "limit": 2,
    }
    first = await find(call, **query)
    assert [member["user_id"] for member in first["members"]] == ["u4", "u3"]
    second = await find(call, **query, next=first["next"])
    assert [member["user_id"] for member in second["members"]] == ["u2", "u1"]
    back = await find(call, **query, prev=second["prev"])
    assert [member["user_id"] for member in back["members"]] == ["u4", "u3"]


async def test_a_cursor_of_another_call_is_refused(call: Edges) -> None:
    await call.post(
        "/video/call/default/other",
        {"data": {"members": [{"user_id": "a"}, {"user_id": "b"}]}},
        headers=JOHN,
    )
    page = await find(call, id="other", limit=1)
    answer = await find(call, 400, limit=1, next=page["next"])
    assert answer["message"].startswith("next ")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"id": None}, "id "),
        ({"type": 7}, "type "),
        ({"id": "a b"}, "type and id together "),
        ({"filter_conditions": {"role": {"$like": "x"}}}, "filter_conditions.role"),
        ({"limit": 0}, "limit "),
        ({"sort": [{"field": "password", "direction": 1}]}, "sort[0]"),
        ({"next": "garbled"}, "next "),
    ],
)
async def test_a_wrong_query_is_refused_by_its_path(
    call: Edges, query: dict[str, Any], field: str
) -> None:
    answer = await find(call, 400, **query)
    assert (answer["code"], answer["message"][: len(field)]) == (4, field)
