"""Calls: read one, create one by asking for it, change, find, end and delete them.

Watching happens on the way: whoever is to watch does so before the answer's state is read, so that
what the answer does not show arrives as an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from relay import calls, events, filters, http, permissions
from relay.api import fields, views
from relay.api.context import Caller, Context, check_same_user, no_such_call
from relay.api.fields import Named
from relay.api.members import read_members
from relay.calls import Call
from relay.errors import BadInput
from relay.users import Profile

LONGEST_TEAM: Final = 128

_CALL_SORT: Final = (filters.Sort("created_at", ascending=False),)


async def get(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET …/call/{type}/{id}``."""
    cid = api.cid(request, caller)
    connection_id = views.watching(request, caller, {})
    members = views.members_limit(request, {})
    rings = {
        name: fields.query_flag(request.query_params, name, default=False)
        for name in ("ring", "notify")
    }
    call = await api.call(cid)
    caller.check_may("read-call", call)
    _check_may_call_out(rings, caller, call)
    if connection_id is not None:
        await views.watch(api, caller, connection_id, [cid])
        call = await api.call(cid)
    await _call_out(api, rings, caller, call)
    return http.answer(request, await state(api, caller, call, members))


async def get_or_create(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/call/{type}/{id}``: a call that exists is returned as it is."""
    cid = api.cid(request, caller)
    body = await api.body(request)
    connection_id = views.watching(request, caller, body)
    members = views.members_limit(request, body)
    call, created = await ensure(api, caller, cid, body)
    if connection_id is not None:
        await views.watch(api, caller, connection_id, [cid])
        call = await api.call(cid)
    content = {"created": created, **await state(api, caller, call, members)}
    return http.answer(request, content, 201)


async def ensure(
    api: Context, caller: Caller, cid: str, body: Mapping[str, Any]
) -> tuple[Call, bool]:
    """Return a call, created as ``body`` describes unless it exists, and whether it was created.

    Its creation and its ringing are announced. Raises ``NotAllowed`` for who is blocked in it.
    """
    caller.check_not_anonymous("create calls")
    wanted, named = _described(api, caller, cid, body)
    rings = {name: fields.flag(body, name, default=False) for name in ("ring", "notify")}
    known = await api.store.call(cid)
    if known is None:
        caller.check_may("create-call", None)
        await views.gather_users(api, named)
        call, created = await api.store.create_call(wanted)
    else:
        call, created = known, False
    caller.check_may("read-call", call)
    _check_may_call_out(rings, caller, call)
    event_id = f"created-{call.created_at}"
    own = call.created_by == wanted.created_by
    if created or (own and api.may_owe(call.created_at, cid, event_id)):
        seen = await views.view(api, [call], len(call.members))
        await api.announcer.announce(
            cid,
            "call.created",
            {"call": seen.call(call), "members": seen.members(call.members)},
            members=call.audience,
            event_id=event_id,
        )
    await _call_out(api, rings, caller, call)
    return call, created


def _described(
    api: Context, caller: Caller, cid: str, body: Mapping[str, Any]
) -> tuple[Call, list[Named]]:
    """Return the call that a request describes, and the users that it names."""
    data = fields.optional_object(body, "data") or {}
    custom = fields.optional_object(data, "custom", "data.") or {}
    events.check_custom(custom, api.custom_limit, "data.custom")
    creator = _creator(caller, data)
    now_ns = api.clock()
    members, users = read_members(data, "members", "data.", now_ns, api.custom_limit)
    override = data.get("settings_override")
    settings = {} if override is None else calls.read_settings(override, "data.settings_override")
    call = Call(
        cid=cid,
        created_by=creator.user_id,
        created_at=now_ns,
        updated_at=now_ns,
        starts_at=fields.time(data, "starts_at", "data."),
        team=fields.text(data, "team", most=LONGEST_TEAM, path="data."),
        video=fields.flag(
            data, "video", default=fields.flag(body, "video", default=False), path="data."
        ),
        backstage=_begins_backstage(cid, settings),
        custom=custom,
        settings=settings,
        members=members,
    )
    return call, [*users, creator]


def _begins_backstage(cid: str, settings: Mapping[str, Any]) -> bool:
    enabled = settings.get("backstage", {}).get("enabled")
    return cid.startswith("livestream:") if enabled is None else bool(enabled)


def _creator(caller: Caller, data: Mapping[str, Any]) -> Named:
    named = fields.named_user(data, "created_by_id", "created_by", "data.")
    if caller.user_id is None:
        if named is None:
            raise BadInput(
                "data.created_by_id or data.created_by is missing: a server says who creates"
            )
        return named
    check_same_user(caller.user_id, named and named.user_id, "data.created_by")
    return Named(caller.user_id, Profile())


def _check_may_call_out(asked: Mapping[str, bool], caller: Caller, call: Call) -> None:
    if any(asked.values()):
        caller.check_may("join-call", call)


async def _call_out(api: Context, asked: Mapping[str, bool], caller: Caller, call: Call) -> None:
    """Ring or notify the members, where a request asked for it."""
    for name, kind in (("ring", "call.ring"), ("notify", "call.notification")):
        if asked[name]:
            await announce_ring(api, caller, call, kind)


async def announce_ring(api: Context, caller: Caller, call: Call, kind: str) -> None:
    """Tell every member that the call rings, or that there is one."""
    caller_id = call.created_by if caller.user_id is None else caller.user_id
    seen = await views.view(api, [call], len(call.members), also=[caller_id])
    session = seen.sessions.get(call.cid)
    await api.announcer.announce(
        call.cid,
        kind,
        {
            "call": seen.call(call),
            "members": seen.members(call.members),
            "session_id": "" if session is None else session.id,
            "user": seen.user(caller_id, call.created_at),
            "video": call.video,
        },
        members=call.audience,
    )


async def state(api: Context, caller: Caller, call: Call, members: int) -> dict[str, Any]:
    """Return Stream's CallStateResponse of one call."""
    also = [] if caller.user_id is None else [caller.user_id]
    return (await views.view(api, [call], members, also)).state(caller, call, members)


# -- changing -----------------------------------------------------------------------------------


async def update(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``PATCH …/call/{type}/{id}``: ``custom`` replaces, settings are merged."""
    cid = api.cid(request, caller)
    body = await api.body(request)
    news, needed = _news(api, body)
    call = await api.call(cid)
    for capability in needed:
        caller.check_may(capability, call)
    now_ns = api.clock()

    def change(call: Call) -> Call:
        said = dict(news)
        if "settings" in said:
            said["settings"] = calls.merged(call.settings, said["settings"])
        return msgspec.structs.replace(call, **said, updated_at=now_ns)

    call = await changed(api, cid, change)
    await announce_update(api, call)
    return http.answer(request, await state(api, caller, call, views.MEMBERS_SHOWN))


def _news(api: Context, body: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return what a PATCH changes, and which capabilities that takes."""
    news: dict[str, Any] = {}
    needed = {"update-call"}
    if (custom := fields.optional_object(body, "custom")) is not None:
        events.check_custom(custom, api.custom_limit)
        news["custom"] = custom
    if (starts_at := fields.time(body, "starts_at")) is not None:
        news["starts_at"] = starts_at
    if (override := body.get("settings_override")) is not None:
        news["settings"] = calls.read_settings(override, "settings_override")
        needed = {"update-call-settings"} if len(news) == 1 else {*needed, "update-call-settings"}
    return news, needed


async def changed(api: Context, cid: str, change: Any) -> Call:
    """Change a call and return it; raises ``NotFound`` when it is gone."""
    done = await api.store.change_call(cid, change)
    if done is None:
        raise no_such_call(cid)
    return done.after


async def announce_update(api: Context, call: Call) -> None:
    """Tell the watchers how the call is now."""
    seen = await views.view(api, [call], 0)
    await api.announcer.announce(
        call.cid,
        "call.updated",
        {"call": seen.call(call), "capabilities_by_role": permissions.by_role(call)},
    )


async def go_live(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/go_live``: everyone may join from now on."""
    return await _set_backstage(api, request, caller, backstage=False)


async def stop_live(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/stop_live``: only who may join backstage can join from now on."""
    return await _set_backstage(api, request, caller, backstage=True)


async def _set_backstage(
    api: Context, request: Request, caller: Caller, *, backstage: bool
) -> Response:
    cid = api.cid(request, caller)
    caller.check_may("update-call", await api.call(cid))
    now_ns = api.clock()
    call = await changed(
        api,
        cid,
        lambda call: msgspec.structs.replace(call, backstage=backstage, updated_at=now_ns),
    )
    seen = await views.view(api, [call], 0)
    if not backstage:
        await api.announcer.announce(cid, "call.live_started", {"call": seen.call(call)})
    await announce_update(api, call)
    return http.answer(request, {"call": seen.call(call)}, 201)


# -- ending -------------------------------------------------------------------------------------


async def end(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/mark_ended``. Ending an ended call changes nothing, and is announced once.

    A session that runs is ended each time: the request before may not have come that far.
    """
    cid = api.cid(request, caller)
    caller.check_may("end-call", await api.call(cid))
    now_ns = api.clock()

    def change(call: Call) -> Call:
        if call.ended_at is not None:
            return call
        return msgspec.structs.replace(call, ended_at=now_ns, updated_at=now_ns)

    done = await api.store.change_call(cid, change)
    if done is None:
        raise no_such_call(cid)
    ended_at = done.after.ended_at or now_ns
    event_id = f"ended-{ended_at}"
    if done.after is not done.before or api.may_owe(ended_at, cid, event_id):
        await _announce_end(api, caller, done.after, event_id)
    await api.joins.end(cid)
    return http.answer(request, {}, 201)


async def _announce_end(api: Context, caller: Caller, call: Call, event_id: str) -> None:
    also = [] if caller.user_id is None else [caller.user_id]
    seen = await views.view(api, [call], len(call.members), also)
    ended: dict[str, Any] = {
        "call": seen.call(call), "members": seen.members(call.members),
    }  # fmt: skip
    if caller.user_id is not None:
        ended["user"] = seen.user(caller.user_id, call.created_at)
    await api.announcer.announce(
        call.cid, "call.ended", ended, members=call.audience, event_id=event_id
    )


async def delete(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/delete``: hard or not, the relay forgets the call.

    It is announced before: a repeat, should that be cut off, has to find it.
    """
    cid = api.cid(request, caller)
    fields.flag(await api.body(request), "hard", default=False)
    call = await api.call(cid)
    caller.check_may("end-call", call)
    seen = await views.view(api, [call], len(call.members))
    await api.joins.end(cid)  # while the call can still be shown
    shown = {"call": seen.call(call)}
    await api.announcer.announce(
        cid, "call.deleted", shown, members=call.audience, event_id=f"deleted-{call.created_at}"
    )
    deleted = await api.store.delete_call(cid)
    await api.joins.end(cid)  # one that has begun meanwhile
    if deleted is None:
        raise no_such_call(cid)
    return http.answer(request, shown, 201)


# -- finding ------------------------------------------------------------------------------------


async def query(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/calls``; with ``watch`` the caller's connection watches what was found."""
    body = await api.body(request)
    connection_id = views.watching(request, caller, body, default=False)
    wanted = filters.read_query(body, filters.CALLS, default_sort=_CALL_SORT)
    found = await api.store.query_calls(wanted)
    seen = [call for call in found.items if _is_shown(caller, call)]
    if connection_id is not None:
        cids = [call.cid for call in seen]
        unknown = await _unknown(api, caller, filters.listed(wanted))
        watched = [*cids, *unknown]
        await views.watch(api, caller, connection_id, watched, returning=_is_return(body))
        now = await api.store.calls(cids)
        seen = [now[call.cid] for call in seen if call.cid in now]
    also = [] if caller.user_id is None else [caller.user_id]
    view = await views.view(api, seen, also=also)
    content: dict[str, Any] = {"calls": [view.state(caller, call) for call in seen]}
    content |= views.cursors(found)
    return http.answer(request, content, 201)


async def _unknown(api: Context, caller: Caller, asked: Sequence[str]) -> list[str]:
    """Return those of the calls that nobody created, where such calls may be watched.

    The embedded broker forgets its calls when it ends. An SDK that comes back asks to watch them
    again just this once, and believes that it does.
    """
    if api.strict_calls or not asked:
        return []
    known = await api.store.calls(asked)
    unknown = [cid for cid in asked if cid not in known and events.is_cid(cid)]
    disallowed = caller.claims.disallowed(unknown)
    return [cid for cid in unknown if cid not in disallowed]


def _is_return(body: Mapping[str, Any]) -> bool:
    """Tell whether this is how Stream's SDKs watch again after a reconnect."""
    match body:
        case {
            "watch": True,
            "filter_conditions": {"cid": {"$in": _} as operators} as conditions,
        } if len(conditions) == len(operators) == 1:
            return not any(body.get(name) for name in ("limit", "next", "prev", "sort"))
    return False


def _is_shown(caller: Caller, call: Call) -> bool:
    """Tell whether the caller may see a call: its token is for it, and it is not blocked there."""
    if caller.claims.disallowed([call.cid]):
        return False
    return "read-call" in caller.capabilities(call)
