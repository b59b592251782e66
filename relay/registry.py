"""Learn calls, members and users from Stream's own webhooks: they can be asked for here too.

A webhook that carries a ``call`` registers it or brings it up to date; one that arrives late does
not undo a newer one, nor, for a day, bring back a call that Stream said was deleted. What cannot be
read, or would make a call larger than the store takes, is left out: the event itself is relayed all
the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from relay import calls, logs, wire
from relay.broker import Store
from relay.calls import MEMBERS_MOST, Call, Member
from relay.errors import BadInput, TooLarge
from relay.events import check_user_id
from relay.users import Profile, read_profile

log = logs.get(__name__)


class Registry:
    """Keeps the store up to date with what Stream says."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def learn(self, body: Mapping[str, Any], now_ns: int) -> None:
        """Take what a webhook's body says of a call; raises ``Unavailable``, so that it repeats."""
        shown = body.get("call")
        if not isinstance(shown, dict):
            return
        cid = body["call_cid"]
        if body["type"] == "call.deleted":
            await self._forget(cid, _created_at(shown, now_ns), now_ns)
            return
        try:
            await self._learn(cid, shown, body, now_ns)
        except (BadInput, TooLarge) as error:
            log.warning("call not registered", cid=cid, problem=error.message)

    async def _forget(self, cid: str, created_at: int, now_ns: int) -> None:
        """Delete a call; a repeat does not delete the next one of this cid."""
        gone = await self._store.gone(cid, now_ns) or 0
        call = await self._store.call(cid)
        if call is not None and (created_at > gone or created_at >= call.created_at):
            await self._store.delete_call(cid)
        await self._store.note_gone(cid, max(created_at, gone), now_ns)

    async def _learn(
        self, cid: str, shown: Mapping[str, Any], body: Mapping[str, Any], now_ns: int
    ) -> None:
        said = _read_call(cid, shown, now_ns)
        members = _read_members(body, now_ns)
        users = dict(_read_users(shown, body))
        await asyncio.gather(
            *(self._store.save_user(user_id, profile, now_ns) for user_id, profile in users.items())
        )
        removed = _removed(body)

        async def brought_up_to_date() -> bool:
            change = await self._store.change_call(
                cid, lambda known: _newer(known, said, members, removed)
            )
            return change is not None

        if await brought_up_to_date():
            return
        gone = await self._store.gone(cid, now_ns)
        if gone is not None and said.created_at <= gone:
            log.info("call not registered", cid=cid, problem="it was deleted")
            return
        _, created = await self._store.create_call(_with(said, members, removed))
        if not created:
            await brought_up_to_date()  # another was first


def _read_call(cid: str, shown: Mapping[str, Any], now_ns: int) -> Call:
    created_by = shown.get("created_by")
    creator = created_by.get("id") if isinstance(created_by, dict) else None
    blocked = shown.get("blocked_user_ids")
    settings = shown.get("settings")
    return Call(
        cid=cid,
        created_by=check_user_id(creator, "call.created_by.id"),
        created_at=_time(shown, "created_at") or now_ns,
        updated_at=_time(shown, "updated_at") or now_ns,
        starts_at=_time(shown, "starts_at"),
        ended_at=_time(shown, "ended_at"),
        team=str(shown.get("team") or ""),
        backstage=shown.get("backstage") is True,
        custom=_object(shown, "custom"),
        settings={} if settings is None else calls.read_settings(settings, "call.settings"),
        blocked=tuple(
            check_user_id(user_id, "call.blocked_user_ids")
            for user_id in (blocked if isinstance(blocked, list) else [])
        ),
    )


def _created_at(shown: Mapping[str, Any], now_ns: int) -> int:
    """Return when a call was created as far as that can be read, else now."""
    try:
        return _time(shown, "created_at") or now_ns
    except BadInput:
        return now_ns


def _time(shown: Mapping[str, Any], name: str) -> int | None:
    value = shown.get(name)
    return None if value is None else wire.parse_time(value, f"call.{name}")


def _object(shown: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = shown.get(name)
    return value if isinstance(value, dict) else {}


def _read_members(body: Mapping[str, Any], now_ns: int) -> list[Member]:
    listed = body.get("members")
    return [
        Member(
            user_id=check_user_id(shown.get("user_id"), "members.user_id"),
            created_at=_time(shown, "created_at") or now_ns,
            updated_at=_time(shown, "updated_at") or now_ns,
            role=str(shown.get("role") or "user"),
            custom=_object(shown, "custom"),
        )
        for shown in (listed if isinstance(listed, list) else [])[:MEMBERS_MOST]
        if isinstance(shown, dict)
    ]


def _removed(body: Mapping[str, Any]) -> frozenset[str]:
    """Return who is no member any more: this one event lists ids instead of members."""
    if body["type"] != "call.member_removed" or not isinstance(body.get("members"), list):
        return frozenset()
    return frozenset(user_id for user_id in body["members"] if isinstance(user_id, str))


def _read_users(shown: Mapping[str, Any], body: Mapping[str, Any]) -> list[tuple[str, Profile]]:
    listed = body.get("members")
    members = [m for m in (listed if isinstance(listed, list) else []) if isinstance(m, dict)]
    described = [shown.get("created_by"), body.get("user"), *(m.get("user") for m in members)]
    return [
        (check_user_id(user.get("id"), "user.id"), read_profile(user, "user"))
        for user in described[: MEMBERS_MOST + 2]
        if isinstance(user, dict)
    ]


def _with(call: Call, members: list[Member], removed: frozenset[str]) -> Call:
    together = {member.user_id: member for member in (*call.members, *members)}
    kept = [member for user_id, member in together.items() if user_id not in removed]
    return msgspec.structs.replace(call, members=tuple(kept[:MEMBERS_MOST]))


def _newer(known: Call, said: Call, members: list[Member], removed: frozenset[str]) -> Call:
    """Return what is known with what was said, unless something newer is known already."""
    if said.updated_at < known.updated_at:
        return known
    fresh = msgspec.structs.replace(
        said, members=known.members, member_changes=known.member_changes,
        permissions=known.permissions,
    )  # fmt: skip
    fresh = _with(fresh, members, removed)
    return known if fresh == known else fresh
