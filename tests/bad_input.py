"""Every bad input of the HTTP doors, as one table, for any relay that can be reached by HTTP.

``rows(target)`` gives the requests, ``check(client, target, row)`` sends one and asserts its
status, its code, the six keys, its counter, and that the next good request on the same door works.
Used on the composed edges (tests/api) and on real processes with both brokers (tests/integration).
"""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import jwt

from relay import signing, tokens, wire

SIX_KEYS = {"code", "message", "StatusCode", "duration", "more_info", "details"}


@dataclass(frozen=True)
class Target:
    """The relay under test: its credentials, its limits, and its time in seconds."""

    api_key: str
    api_secret: str
    webhook_max_bytes: int
    custom_max_bytes: int = 5120
    freshness_s: float = 3600.0
    now: Callable[[], float] = time.time

    def token(self, user_id: str | None, **claims: Any) -> str:
        """Return a good token, or with ``claims`` a worse one."""
        return jwt.encode({"user_id": user_id, **claims} if user_id else claims, self.api_secret)

    def webhook(self, **fields: Any) -> bytes:
        """Return the body of a good webhook, its fields replaced; None leaves one out."""
        body: dict[str, Any] = {
            "type": "custom",
            "created_at": int(self.now() * 1e9),
            "call_cid": "default:bad-input",
            "custom": {"n": uuid4().hex},
        }
        body.update(fields)
        return wire.encode({key: value for key, value in body.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One request that must be refused, and how."""

    name: str
    path: str
    status: int
    code: int
    door: str
    reason: str
    method: str = "POST"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


# -- building blocks ----------------------------------------------------------------------------


def signed(target: Target, plain: bytes, *, key: str | None = None) -> dict[str, str]:
    """Return Stream's headers for a body, signed over its uncompressed bytes."""
    return {
        "x-api-key": target.api_key if key is None else key,
        "x-signature": signing.stream_signature(plain, target.api_secret),
        "x-webhook-id": uuid4().hex,
        "x-webhook-attempt": "1",
        "content-type": "application/json",
    }


def bearer(given: str) -> dict[str, str]:
    """Return the headers of a request with a token."""
    return {"authorization": given, "stream-auth-type": "jwt", "content-type": "application/json"}


def forged(alg: str, payload: Mapping[str, str], mac: Callable[[bytes], bytes]) -> str:
    """Return a token as an attacker writes it, with whatever ``mac`` gives for a signature."""
    parts = ({"alg": alg, "typ": "JWT"}, payload)
    said = b".".join(_base64url(json.dumps(part).encode()) for part in parts)
    return (said + b"." + _base64url(mac(said))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# -- webhooks -----------------------------------------------------------------------------------


def _webhook(name: str, status: int, code: int, reason: str, body: bytes, **more: Any) -> Row:
    return Row(
        name=f"webhook: {name}",
        path=more.pop("path", "/webhooks/stream"),
        status=status,
        code=code,
        door="webhook",
        reason=reason,
        body=body,
        **more,
    )


def _webhook_signatures(target: Target) -> list[Row]:
    body = target.webhook()
    good = signed(target, body)
    without = {name: value for name, value in good.items() if name != "x-signature"}
    keyless = {name: value for name, value in good.items() if name != "x-api-key"}
    upper = good | {"x-signature": good["x-signature"].upper()}
    wrong = good | {"x-signature": signing.stream_signature(body, "another secret")}
    return [
        _webhook("no signature", 401, 43, "signature_missing", body, headers=without),
        _webhook(
            "malformed signature", 401, 43, "signature_malformed", body,
            headers=good | {"x-signature": "sha256=abc"},
        ),
        _webhook("signature in upper case", 401, 43, "signature_malformed", body, headers=upper),
        _webhook("signature of another key", 401, 43, "bad_signature", body, headers=wrong),
        _webhook("signature of another body", 401, 43, "bad_signature", body + b" ", headers=good),
        _webhook("no api key", 401, 2, "unknown_key", body, headers=keyless),
        _webhook(
            "unknown api key", 401, 2, "unknown_key", body,
            headers=signed(target, body, key="nobody"),
        ),
        _webhook(
            "unknown source", 404, 16, "unknown_source", body, headers=good, path="/webhooks/nobody"
        ),
    ]  # fmt: skip


def _webhook_bodies(target: Target) -> list[Row]:
    def row(name: str, status: int, code: int, reason: str, plain: bytes, sent: bytes = b"") -> Row:
        return _webhook(name, status, code, reason, sent or plain, headers=signed(target, plain))

    now_ns = int(target.now() * 1e9)
    stale = now_ns - int((target.freshness_s + 5) * 1e9)
    good = target.webhook()
    zipped = gzip.compress(good)
    huge = target.webhook(custom={"n": "x" * target.webhook_max_bytes})
    deep = good[:-1] + b',"deep":' + b"[" * 5000 + b"]" * 5000 + b"}"
    return [
        row("not JSON", 400, 4, "not_json", b"balloons"),
        row("empty", 400, 4, "not_json", b""),
        row("half of a JSON", 400, 4, "not_json", good[:-1]),
        row("not UTF-8", 400, 4, "not_json", b'{"type":"\xff"}'),
        row("not an object", 400, 4, "not_an_object", b'["type","custom"]'),
        row("no type", 400, 4, "no_type", target.webhook(type=None)),
        row("type that is none", 400, 4, "no_type", target.webhook(type=["custom"])),
        row("type of a frame", 400, 4, "reserved_type", target.webhook(type="connection.ok")),
        row("no created_at", 400, 4, "bad_time", target.webhook(created_at=None)),
        row("created_at that is none", 400, 4, "bad_time", target.webhook(created_at="today")),
        row("too old", 400, 4, "stale", target.webhook(created_at=stale)),
        row("ahead", 400, 4, "ahead", target.webhook(created_at=now_ns + 90 * 10**9)),
        row("call_cid that is none", 400, 4, "bad_cid", target.webhook(call_cid="standup")),
        row("call_cid with spaces", 400, 4, "bad_cid", target.webhook(call_cid="default:a b")),
        row("call_cid with slashes", 400, 4, "bad_cid", target.webhook(call_cid="default:a/b")),
        row("endless call_cid", 400, 4, "bad_cid", target.webhook(call_cid="default:" + "x" * 992)),
        row("call_cid that is a number", 400, 4, "bad_cid", target.webhook(call_cid=7)),
        row("too deep", 400, 4, "too_deep", deep),
        row("too large", 413, 22, "body_too_large", huge),
        row("gzip bomb", 413, 22, "body_too_large", huge, gzip.compress(huge)),
        row("gzip cut short", 400, 4, "bad_gzip", good, zipped[:-9]),
        row("gzip with a tail", 400, 4, "bad_gzip", good, zipped + b"tail"),
        row("damaged gzip", 400, 4, "bad_gzip", good, zipped[:2] + b"\xff" + zipped[3:]),
    ]


# -- the API ------------------------------------------------------------------------------------


def _event(
    target: Target,
    name: str,
    status: int,
    code: int,
    reason: str,
    *,
    given: str | None = None,
    body: object = None,
    call: str = "default/bad-input",
    query: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Row:
    content = {"custom": {"n": 1}, "user_id": "john"} if body is None else body
    query = f"api_key={target.api_key}" if query is None else query
    return Row(
        name=f"event: {name}",
        path=f"/api/v2/video/call/{call}/event?{query}",
        status=status,
        code=code,
        door="api",
        reason=reason,
        body=content if isinstance(content, bytes) else wire.encode(content),
        headers={**bearer(target.token(None) if given is None else given), **(headers or {})},
    )


def _tokens(target: Target) -> list[Row]:
    now = int(target.now())
    who = {"user_id": "john"}
    alg_none = forged("none", who, lambda said: b"")
    hs512 = forged(
        "HS512", who, lambda said: hmac.digest(target.api_secret.encode(), said, "sha512")
    )
    foreign = tokens.issue("another secret of at least 32 bytes", user_id="john", now=now)
    john = target.token("john")

    def row(name: str, code: int, reason: str, given: str, **more: Any) -> Row:
        return _event(target, name, 401, code, reason, given=given, **more)

    return [
        row("no token", 5, "unauthenticated", ""),
        row("not a token", 5, "bad_token", "balloons"),
        row("token with Bearer", 5, "bad_token", f"Bearer {john}"),
        row("token signed by another", 43, "bad_signature", foreign),
        row("token with alg none", 43, "bad_signature", alg_none),
        row("token of a wrong algorithm", 43, "bad_signature", hs512),
        row("token expired", 40, "token_expired", target.token("john", exp=now - 1)),
        row("token not yet valid", 41, "token_not_yet_valid", target.token("john", nbf=now + 99)),
        row("token before its issue", 42, "token_before_issue", target.token("john", iat=now + 99)),
        row("token of null", 5, "bad_token", jwt.encode({"user_id": None}, target.api_secret)),
        row("token of a number", 5, "bad_token", jwt.encode({"user_id": 7}, target.api_secret)),
        row("unknown api key", 2, "unknown_key", john, query="api_key=nobody"),
        row("no api key", 2, "unknown_key", john, query=""),
        row("unknown auth type", 5, "unauthenticated", john, headers={"stream-auth-type": "x"}),
        _event(
            target, "another user", 403, 17, "other_user", given=john,
            body={"custom": {}, "user_id": "jane"},
        ),
        _event(
            target, "another user in the query", 403, 17, "other_user", given=john,
            query=f"api_key={target.api_key}&user_id=jane",
        ),
        _event(
            target, "call not in the token", 403, 17, "call_not_in_token",
            given=target.token("john", call_cids=["default:another"]),
        ),
        _event(
            target, "anonymous", 403, 17, "anonymous", given="",
            headers={"stream-auth-type": "anonymous"},
        ),
    ]  # fmt: skip


def _event_bodies(target: Target) -> list[Row]:
    def row(name: str, status: int, code: int, reason: str, body: object, **more: Any) -> Row:
        return _event(target, name, status, code, reason, body=body, **more)

    def bad(name: str, reason: str, **fields: Any) -> Row:
        return row(name, 400, 4, reason, {"custom": {}, "user_id": "john", **fields})

    big = {"n": "x" * target.custom_max_bytes}
    deep = b'{"user_id":"john","custom":' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    nobody = {"custom": {"n": 1}}
    return [
        row("not JSON", 400, 4, "not_json", b"{balloons}"),
        row("not an object", 400, 4, "not_an_object", [1]),
        row("too deep", 400, 4, "too_deep", deep),
        row("server names no user", 400, 4, "bad_input", nobody),
        row("no custom", 400, 4, "custom_not_an_object", {"user_id": "john"}),
        bad("custom that is no object", "custom_not_an_object", custom="balloons"),
        row("custom too large", 413, 22, "custom_too_large", {"custom": big, "user_id": "john"}),
        row("too large", 413, 22, "body_too_large", b" " * (target.webhook_max_bytes + 1)),
        bad("user_id that is a number", "bad_user_id", user_id=7),
        bad("user_id with spaces", "bad_user_id", user_id="john doe"),
        bad("user that is no object", "bad_input", user="john"),
        bad("user without an id", "bad_user_id", user={"name": "John"}),
        bad("user and user_id differ", "bad_input", user={"id": "jane"}),
        bad("name that is a number", "bad_input", user={"id": "john", "name": 7}),
        bad("role that is a list", "bad_input", user={"id": "john", "role": ["admin"]}),
        bad("event_id with spaces", "bad_event_id", event_id="a b"),
        bad("event_id that is a number", "bad_event_id", event_id=7),
        bad("volatile that is a word", "bad_input", volatile="yes"),
        row(
            "Idempotency-Key that is too long", 400, 4, "bad_event_id", None,
            headers={"idempotency-key": "k" * 129},
        ),
        row("call with spaces", 400, 4, "bad_cid", None, call="default/a%20b"),
        row("call of 1 000 characters", 400, 4, "bad_cid", None, call="default/" + "x" * 1000),
        row("call with a colon", 400, 4, "bad_cid", None, call="default/a:b"),
    ]  # fmt: skip


def _calls(target: Target) -> list[Row]:
    server, john = bearer(target.token(None)), bearer(target.token("john"))
    anonymous = {"stream-auth-type": "anonymous"}

    def row(name: str, status: int, code: int, reason: str, path: str, **more: Any) -> Row:
        joined = f"{path}{'&' if '?' in path else '?'}api_key={target.api_key}"
        return Row(
            name=name, path=joined, status=status, code=code, door="api", reason=reason, **more
        )

    def created(name: str, reason: str, body: object, headers: Mapping[str, str] = john) -> Row:
        return row(
            f"call: {name}", 400, 4, reason, "/video/call/default/bad-input",
            body=wire.encode(body), headers=headers,
        )  # fmt: skip

    call = "/video/call/default/bad-input"
    return [
        created("data that is a list", "bad_input", {"data": []}),
        created("custom that is a word", "bad_input", {"data": {"custom": "x"}}),
        created("watch that is a word", "bad_input", {"watch": "yes"}),
        created("server names no creator", "bad_input", {"data": {}}, server),
        created("creator that is a number", "bad_user_id", {"data": {"created_by_id": 7}}, server),
        row(
            "call: another creator", 403, 17, "other_user", call,
            body=wire.encode({"data": {"created_by_id": "jane"}}), headers=john,
        ),
        row("call: anonymous creates", 403, 17, "anonymous", call, headers=anonymous),
        row(
            "call: never created", 404, 16, "no_such_call", "/video/call/default/never-created",
            method="GET", headers=john,
        ),
        row(
            "call: unknown connection", 400, 46, "unknown_connection", f"{call}?connection_id=no",
            headers=john,
        ),
        row(
            "call: anonymous watches", 403, 17, "anonymous", f"{call}?connection_id=no",
            method="GET", headers=anonymous,
        ),
        row(
            "call: server watches", 403, 17, "server_watch", f"{call}?connection_id=no",
            body=wire.encode({"data": {"created_by_id": "john"}}), headers=server,
        ),
        row(
            "call: watch that is a number", 400, 4, "bad_input", f"{call}?watch=1",
            method="GET", headers=john,
        ),
        row(
            "users: a user upserts", 403, 17, "server_only", "/api/v2/users",
            body=b'{"users":{}}', headers=john,
        ),
        row("users: none", 400, 4, "bad_input", "/api/v2/users", body=b"{}", headers=server),
        row(
            "users: key and id differ", 400, 4, "bad_input", "/api/v2/users",
            body=b'{"users":{"john":{"id":"jane"}}}', headers=server,
        ),
        row("guest: no user", 400, 4, "bad_input", "/video/guest", body=b"{}"),
        row("guest: no id", 400, 4, "bad_user_id", "/video/guest", body=b'{"user":{}}'),
    ]  # fmt: skip


def _paths(target: Target) -> list[Row]:
    def row(name: str, method: str, path: str, status: int, code: int, reason: str) -> Row:
        return Row(
            name=name, method=method, path=path, status=status, code=code, door="http",
            reason=reason,
        )  # fmt: skip

    return [
        row("unknown path", "GET", "/video/balloons", 404, 16, "not_found"),
        row("call with a slash", "POST", "/video/call/default/a%2Fb/event", 404, 16, "not_found"),
        row("wrong method", "GET", "/webhooks/stream", 405, 4, "method_not_allowed"),
        row("wrong method of a call", "PUT", "/video/call/a/b", 405, 4, "method_not_allowed"),
    ]


def rows(target: Target) -> list[Row]:
    """Return the table. Its bodies carry the target's time, so make it when it is used."""
    return [
        *_webhook_signatures(target),
        *_webhook_bodies(target),
        *_tokens(target),
        *_event_bodies(target),
        *_calls(target),
        *_paths(target),
    ]


# -- running a row ------------------------------------------------------------------------------


async def check(client: httpx.AsyncClient, target: Target, row: Row) -> None:
    """Send a row and assert what it promises, then that a good request gets through."""
    before = await _counted(client, row)
    response = await client.request(
        row.method, row.path, content=row.body, headers=dict(row.headers)
    )
    body = response.json()
    assert (response.status_code, body["code"]) == (row.status, row.code), (row.name, body)
    assert set(body) == SIX_KEYS, row.name
    assert body["StatusCode"] == row.status, row.name
    assert body["message"], row.name
    assert target.api_secret not in response.text, row.name
    assert await _counted(client, row) == before + 1, (row.name, row.door, row.reason)
    await check_good(client, target, row.door)


async def check_good(client: httpx.AsyncClient, target: Target, door: str) -> None:
    """Assert that a good webhook, or a good event, is published."""
    if door == "webhook":
        plain = target.webhook()
        response = await client.post(
            "/webhooks/stream", content=plain, headers=signed(target, plain)
        )
        assert response.json()["status"] == "published", response.text
        return
    response = await client.post(
        f"/api/v2/video/call/default/bad-input/event?api_key={target.api_key}",
        content=b'{"custom":{"render-animation":"balloons"},"user_id":"john"}',
        headers=bearer(target.token(None)),
    )
    assert response.status_code == 201, response.text
    assert response.json()["offset"] > 0


async def _counted(client: httpx.AsyncClient, row: Row) -> float:
    """Return the refusals of the row's door and reason, of all processes together."""
    text = (await client.get("/metrics")).text
    wanted = f'relay_refused_total{{door="{row.door}",reason="{row.reason}"}} '
    found = [line for line in text.splitlines() if line.startswith(wanted)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0
