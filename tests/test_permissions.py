from __future__ import annotations

import msgspec

from relay import permissions
from relay.calls import Call, Member, Permissions

CALL = Call(
    cid="default:demo",
    created_by="john",
    created_at=1,
    updated_at=1,
    members=(Member(user_id="jane", created_at=1, updated_at=1, role="host"),),
)


def test_any_user_may_read_join_and_react() -> None:
    assert permissions.of(CALL, "jim", ["user"]) == permissions.BASIC
    assert permissions.of(CALL, "jim", [None, "guest"]) == permissions.BASIC


def test_a_role_nobody_knows_counts_as_user() -> None:
    assert permissions.of(CALL, "jim", ["juggler"]) == permissions.BASIC


def test_whoever_created_the_call_manages_it() -> None:
    assert permissions.of(CALL, "john", ["user"]) >= permissions.MANAGING


def test_a_members_role_counts_in_its_call_only() -> None:
    other = Call(cid="default:other", created_by="john", created_at=1, updated_at=1)
    assert permissions.of(CALL, "jane", ["user"]) >= permissions.MANAGING
    assert permissions.of(other, "jane", ["user"]) == permissions.BASIC


def test_an_admin_manages_every_call() -> None:
    assert permissions.of(CALL, "jim", ["admin"]) >= permissions.MANAGING


def test_who_is_blocked_may_do_nothing() -> None:
    call = msgspec.structs.replace(CALL, blocked=("jane",))
    assert permissions.of(call, "jane", ["admin"]) == frozenset()


def test_a_call_that_nobody_created_may_be_created() -> None:
    assert permissions.of(None, "jim", ["user"]) == permissions.BASIC


def test_a_call_can_grant_and_revoke_for_one_user() -> None:
    special = {"jim": Permissions(granted=("send-audio", "end-call"), revoked=("create-reaction",))}
    call = msgspec.structs.replace(CALL, permissions=special)
    own = permissions.of(call, "jim", ["user"])
    assert own == (permissions.BASIC | {"send-audio", "end-call"}) - {"create-reaction"}
    assert permissions.of(call, "jill", ["user"]) == permissions.BASIC


def test_in_a_development_call_everyone_manages() -> None:
    call = msgspec.structs.replace(CALL, cid="development:x")
    assert permissions.of(call, "jim", ["guest"]) >= permissions.MANAGING
    assert set(permissions.by_role(call)["guest"]) >= permissions.MANAGING


def test_the_capabilities_are_streams_thirty_six() -> None:
    assert len(permissions.ALL) == 36
    assert all(name == name.lower() and "_" not in name for name in permissions.ALL)


def test_events_tell_the_capabilities_of_each_role() -> None:
    assert permissions.by_role(CALL)["host"] == sorted(permissions.BASIC | permissions.MANAGING)
    assert permissions.by_role(CALL)["anonymous"] == ["read-call"]
