"""Operators' endpoints: how the hooks are doing, and the deliveries that were given up.

Under ``/admin``, for whoever has ``RELAY_ADMIN_TOKEN``: ``Authorization: Bearer <token>``. Used by
``relay hooks`` and ``relay dead``.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import hooks, http, logs, wire
from relay.broker import Attempt, DeadLetter, Outbox, Replayed, Span, Store
from relay.doors import Door
from relay.errors import BadInput, NotAllowed, NotFound, Unauthenticated
from relay.http import Clock

log = logs.get(__name__)

MOST_LISTED: Final = 1000
"""Dead letters of one answer, and of one step of a replay."""
MAX_BYTES: Final = 1_048_576

Troubles = Callable[[], Mapping[str, str]]
"""Returns what is wrong with hooks by their ids, as far as this process delivers to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """What the endpoints work with."""

    store: Store
    outbox: Outbox
    troubles: Troubles
    clock: Clock
    token: str


def operator_routes(
    *, store: Store, outbox: Outbox, troubles: Troubles, clock: Clock, token: str, door: Door
) -> list[Route]:
    """Return the routes under ``/admin``; an empty ``token`` closes them."""
    desk = _Desk(store=store, outbox=outbox, troubles=troubles, clock=clock, token=token)

    def route(path: str, method: str, handler: _Handler) -> Route:
        async def guarded(request: Request) -> Response:
            _check_operator(request, desk.token)
            return await handler(desk, request)

        return Route(path, http.endpoint(guarded, door), methods=[method])

    return [
        route("/admin/hooks", "GET", _hooks),
        route("/admin/dead_letters", "GET", _dead_letters),
        route("/admin/dead_letters/replay", "POST", _replay),
        route("/admin/dead_letters/{id}", "GET", _dead_letter),
    ]


_Handler = Callable[[_Desk, Request], Awaitable[Response]]


def _check_operator(request: Request, token: str) -> None:
    if not token:
        raise NotAllowed(
            "operators' endpoints are closed here: set RELAY_ADMIN_TOKEN", reason="no_admin_token"
        )
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    equal = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not equal:
        raise Unauthenticated("Authorization must be 'Bearer ' and RELAY_ADMIN_TOKEN")


# -- hooks ----------------------------------------------------------------------------------------


async def _hooks(desk: _Desk, request: Request) -> Response:
    """Answer ``GET /admin/hooks``: each hook, and its ``trouble`` or null."""
    found = (await desk.store.hooks()).hooks.hooks
    troubles = desk.troubles()
    listed = [hooks.shown(hook) | {"trouble": troubles.get(hook.id)} for hook in found]
    return http.answer(request, {"hooks": listed})


# -- dead letters ---------------------------------------------------------------------------------


async def _dead_letters(desk: _Desk, request: Request) -> Response:
    """Answer ``GET /admin/dead_letters?hook_id=&since=&until=&limit=``, the oldest first."""
    query = request.query_params
    limit = _limit(query.get("limit"))
    found = await desk.outbox.dead_letters(_span(query), limit)
    return http.answer(request, {"dead_letters": [_shown(letter) for letter in found]})


async def _dead_letter(desk: _Desk, request: Request) -> Response:
    """Answer ``GET /admin/dead_letters/{id}``, with the event itself."""
    letter = await desk.outbox.dead_letter(request.path_params["id"])
    if letter is None:
        raise NotFound("there is no such dead letter: it was replayed or dropped, or never was")
    event = None if letter.body is None else wire.decode(letter.body)
    return http.answer(request, {"dead_letter": _shown(letter) | {"event": event}})


async def _replay(desk: _Desk, request: Request) -> Response:
    """Answer ``POST /admin/dead_letters/replay``: ``ids``, or a span (``hook_id``, ``since`` …)."""
    body = wire.decode_object(await http.read_body(request, MAX_BYTES) or b"{}")
    counts = (await _replayed(desk, body))._asdict()
    log.info("dead letters replayed", **counts)
    return http.answer(request, counts)


async def _replayed(desk: _Desk, body: Mapping[str, Any]) -> Replayed:
    if "ids" in body:
        return await desk.outbox.replay(_ids(body["ids"]), await _enabled(desk))
    if not body.keys() & {"hook_id", "since", "until"}:
        raise BadInput("say which dead letters: ids, hook_id, since or until")
    span = _span(body)
    if span.until_ms is None:  # one that dies again meanwhile must not be replayed for ever
        span = Span(
            hook_id=span.hook_id, since_ms=span.since_ms, until_ms=desk.clock() // 1_000_000 + 1
        )
    return await _replay_span(desk, span)


async def _enabled(desk: _Desk) -> set[str]:
    """Return the ids of the enabled hooks."""
    return {hook.id for hook in (await desk.store.hooks()).hooks.hooks if hook.enabled}


async def _replay_span(desk: _Desk, span: Span) -> Replayed:
    """Replay a span page by page; those that cannot be replayed stay and are passed by."""
    seen: set[str] = set()
    total = Replayed(0, 0)
    while True:
        page = await desk.outbox.dead_letters(span, MOST_LISTED)
        ids = [letter.id for letter in page if letter.id not in seen]
        if not ids:
            return total
        done = await desk.outbox.replay(ids, await _enabled(desk))
        total = Replayed(
            total.replayed + done.replayed,
            total.bodiless + done.bodiless,
            total.hookless + done.hookless,
        )
        seen.update(ids)
        span = Span(hook_id=span.hook_id, since_ms=page[-1].at_ms, until_ms=span.until_ms)


def _ids(value: object) -> list[str]:
    if (
        isinstance(value, list)
        and 0 < len(value) <= MOST_LISTED
        and all(isinstance(item, str) for item in value)
    ):
        return value
    raise BadInput(f"ids must be a list of 1 to {MOST_LISTED} ids of dead letters")


def _span(given: Mapping[str, Any]) -> Span:
    hook_id = given.get("hook_id") or ""
    if not isinstance(hook_id, str):
        raise BadInput("hook_id must be the id of a hook")
    until = given.get("until")
    return Span(
        hook_id=hook_id,
        since_ms=wire.parse_time(given["since"], "since") // 1_000_000 if given.get("since") else 0,
        until_ms=None if not until else -(-wire.parse_time(until, "until") // 1_000_000),
    )


def _limit(text: str | None) -> int:
    if text is None:
        return 100
    if text.isascii() and text.isdigit() and len(text) < 8 and 0 < int(text) <= MOST_LISTED:
        return int(text)
    raise BadInput(f"limit must be 1 to {MOST_LISTED}")


def _shown(letter: DeadLetter) -> dict[str, Any]:
    tried = letter.tried
    return {
        "id": letter.id,
        "reason": letter.reason.value,
        "died_at": letter.at_ms * 1_000_000,
        "hook_id": letter.hook_id,
        "call_cid": letter.cid,
        "type": letter.type,
        "event_id": letter.event_id,
        "epoch": letter.epoch,
        "offset": letter.offset,
        "attempts_made": tried.number,
        "attempts": [_attempt(attempt) for attempt in tried.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempted_at": attempt.at_ms * 1_000_000,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "latency_ms": attempt.latency_ms,
        "answer": attempt.answer,
    }
