"""Members of a call: added, changed, removed, found. They hear of it, watching or not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from relay import events, filters, http, permissions
from relay.api import fields, views
from relay.api.context import Caller, Context, no_such_call
from relay.api.fields import Named
from relay.calls import MEMBERS_MOST, Call, Member, MemberChange
from relay.errors import BadInput
from relay.events import check_cid, check_user_id
from relay.users import Profile

AT_ONCE: Final = 100
"""Members that one request may add, change or remove."""
CHANGES_KNOWN: Final = 20
"""Changes that a call remembers, for requests that are repeated."""
CHANGED_KNOWN: Final = 1000
"""User ids in them altogether: a call is read and written whole."""

_SORT: Final = (filters.Sort("created_at", ascending=True),)
_PROMOTED: Final = "call.member_updated_permission"
_REMOVED: Final = "call.member_removed"


class _Wish(NamedTuple):
    """What a request says of a member; None = not said, what is known stays."""

    user_id: str
    role: str | None
    custom: dict[str, Any] | None


def read_members(
    body: Mapping[str, Any], name: str, path: str, now_ns: int, custom_limit: int
) -> tuple[tuple[Member, ...], list[Named]]:
    """Return the members that a request describes, and them as users."""
    wishes = _read_wishes(body, name, path, custom_limit)
    members = tuple(_new(wish, now_ns) for wish in wishes)
    return members, [Named(wish.user_id, Profile()) for wish in wishes]


def _read_wishes(body: Mapping[str, Any], name: str, path: str, custom_limit: int) -> list[_Wish]:
    """Return what is said of each member; the last word on one counts."""
    wishes = {}
    for index, value in enumerate(fields.items(body, name, most=AT_ONCE, path=path)):
        at = f"{path}{name}[{index}]"
        if not isinstance(value, dict):
            raise BadInput(f"{at} must be a JSON object with user_id")
        user_id = value.get("user_id")
        if user_id is None and isinstance(value.get("user"), dict):
            user_id = value["user"].get("id")
        user_id = check_user_id(user_id, f"{at}.user_id")
        custom = fields.optional_object(value, "custom", f"{at}.")
        if custom is not None:
            events.check_custom(custom, custom_limit, f"{at}.custom")
        wishes[user_id] = _Wish(user_id, fields.read_role(value.get("role"), f"{at}.role"), custom)
    return list(wishes.values())


def _new(wish: _Wish, now_ns: int) -> Member:
    return Member(
        user_id=wish.user_id,
        created_at=now_ns,
        updated_at=now_ns,
        role=wish.role or "user",
        custom=wish.custom or {},
    )


def _merged(member: Member | None, wish: _Wish, now_ns: int) -> Member:
    if member is None:
        return _new(wish, now_ns)
    role = member.role if wish.role is None else wish.role
    custom = member.custom if wish.custom is None else wish.custom
    if (role, custom) == (member.role, member.custom):
        return member
    return msgspec.structs.replace(member, role=role, custom=custom, updated_at=now_ns)


def with_members(
    call: Call,
    wishes: Sequence[_Wish],
    removed: Sequence[str],
    now_ns: int,
    change_id: str,
    is_recent: Callable[[int], bool],
) -> Call:
    """Return the call with members added, changed and removed; raises ``BadInput`` over the bound.

    The same object comes back when nothing changes. ``is_recent`` tells which changes it has to
    remember beside this one, by their time.
    """
    before = {member.user_id: member for member in call.members}
    members = dict(before)
    for user_id in removed:
        members.pop(user_id, None)
    for wish in wishes:
        members[wish.user_id] = _merged(members.get(wish.user_id), wish, now_ns)
    if len(members) > MEMBERS_MOST:
        raise BadInput(
            f"update_members: the call would have {len(members)} members, "
            f"{MEMBERS_MOST} are possible"
        )
    if tuple(members.values()) == call.members:
        return call
    updated = [user_id for user_id, m in members.items() if m != before.get(user_id, m)]
    change = MemberChange(
        id=change_id,
        at=now_ns,
        added=tuple(user_id for user_id in members if user_id not in before),
        updated=tuple(updated),
        promoted=tuple(each for each in updated if members[each].role != before[each].role),
        removed=tuple(user_id for user_id in before if user_id not in members),
    )
    recent = [each for each in call.member_changes if is_recent(each.at)]
    return msgspec.structs.replace(
        call,
        members=tuple(members.values()),
        member_changes=_latest([*recent, change]),
        updated_at=now_ns,
    )


def _latest(changes: Sequence[MemberChange]) -> tuple[MemberChange, ...]:
    """Return as many of the last changes as a call remembers; the last one always."""
    kept, ids = [changes[-1]], _ids_in(changes[-1])
    for change in changes[-2 : -CHANGES_KNOWN - 1 : -1]:
        if (ids := ids + _ids_in(change)) > CHANGED_KNOWN:
            break
        kept.append(change)
    return tuple(reversed(kept))


def _ids_in(change: MemberChange) -> int:
    return sum(map(len, (change.added, change.updated, change.promoted, change.removed)))


async def update(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/members``: what nobody is changed by is announced to nobody.

    What it did when it came before, should it be a repeat, is announced under the same ids as then:
    that may have been cut off.
    """
    cid = api.cid(request, caller)
    body = await api.body(request)
    wishes = _read_wishes(body, "update_members", "", api.custom_limit)
    removed = fields.user_ids(body, "remove_members", most=AT_ONCE)
    if both := {wish.user_id for wish in wishes} & set(removed):
        raise BadInput(f"remove_members and update_members both name {min(both)}")
    call = await api.call(cid)
    _check_may(caller, call, wishes, removed)
    await views.gather_users(api, [Named(wish.user_id, Profile()) for wish in wishes])
    now_ns, change_id = api.clock(), secrets.token_urlsafe(12)
    change = await api.store.change_call(
        cid, lambda call: with_members(call, wishes, removed, now_ns, change_id, api.is_recent)
    )
    if change is None:
        raise no_such_call(cid)
    done = _done(api, change.after, {wish.user_id for wish in wishes}, removed)
    if owed := [each for each in done if not _is_told(api, change.after, each)]:
        await _announce(api, change.after, owed)
    touched = [m for wish in wishes if (m := change.after.member(wish.user_id)) is not None]
    users = await api.store.users([member.user_id for member in touched])
    return http.answer(request, {"members": views.View(users, {}).members(touched)}, 201)


def _check_may(caller: Caller, call: Call, wishes: Sequence[_Wish], removed: Sequence[str]) -> None:
    """A user may always leave; everything else takes a capability."""
    caller.check_may("read-call", call)
    if wishes:
        caller.check_may("update-call-member", call)
    if set(removed) - {caller.user_id}:
        caller.check_may("remove-call-member", call)


def _done(api: Context, call: Call, wished: set[str], removed: Sequence[str]) -> list[MemberChange]:
    """Return what a request has done, now and (as it seems) when it came before, oldest first."""
    return [
        change
        for change in call.member_changes
        if api.is_recent(change.at)
        and wished.issuperset((*change.added, *change.updated))
        and set(removed).issuperset(change.removed)
    ]


def _by_kind(change: MemberChange) -> dict[str, Sequence[str]]:
    """Return what a change is announced as: who it concerns by the type of the event, in order."""
    concerned = {
        "call.member_added": change.added,
        "call.member_updated": change.updated,
        _PROMOTED: change.promoted,
        _REMOVED: change.removed,
    }
    return {kind: user_ids for kind, user_ids in concerned.items() if user_ids}


def _event_id(change: MemberChange, kind: str) -> str:
    return f"{change.id}-{kind}"


def _is_told(api: Context, call: Call, change: MemberChange) -> bool:
    """Tell whether all that a change is announced with is known to be announced."""
    return all(
        api.announcer.has_announced(call.cid, _event_id(change, kind)) for kind in _by_kind(change)
    )


async def _announce(api: Context, call: Call, changes: Sequence[MemberChange]) -> None:
    """Tell the members, those who were and those who are, what has changed among them."""
    seen = await views.view(api, [call], len(call.members))
    shown = seen.call(call)
    members = {member.user_id: member for member in call.members}
    extra = {_PROMOTED: {"capabilities_by_role": permissions.by_role(call)}}

    def listed(user_ids: Sequence[str]) -> list[dict[str, Any]]:
        return seen.members([members[user_id] for user_id in user_ids if user_id in members])

    for change in changes:
        told = [*call.audience, *set(change.removed).difference(call.blocked)]
        for kind, user_ids in _by_kind(change).items():
            if who := user_ids if kind == _REMOVED else listed(user_ids):
                content = {"call": shown, "members": who, **extra.get(kind, {})}
                await api.announcer.announce(
                    call.cid, kind, content, members=told, event_id=_event_id(change, kind)
                )


async def query(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/call/members``: the call is named in the body."""
    body = await api.body(request)
    kind, call_id = (fields.needed_text(body, name, most=128) for name in ("type", "id"))
    cid = check_cid(f"{kind}:{call_id}", "type and id together")
    caller.claims.check_call(cid)
    wanted = filters.read_query(body, filters.MEMBERS, default_sort=_SORT, scope=cid)
    call = await api.call(cid)
    caller.check_may("read-call", call)
    found = filters.select(call.members, wanted)
    users = await api.store.users([member.user_id for member in found.items])
    content: dict[str, Any] = {"members": views.View(users, {}).members(found.items)}
    content |= views.cursors(found)
    return http.answer(request, content, 201)
