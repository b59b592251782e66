"""Play a transcript against a real relay: real sockets, real HTTP, a real Redis.

Who plays whom is explained in docs/protocol.md, under "Transcripts".
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shlex
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay import signing, tokens
from tests.conformance.transcripts import Line, Names, Transcript, filled, mismatch, pattern
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer

LIMIT_S = 10.0
_UNASKED = ("call.watchers", "connection.draining", "health.check")
_HTTP = re.compile(r"(GET|PUT|POST) (\S+)(?: (.*))?")
_ANSWER = re.compile(r"(\d{3})(?: (\{.*))?")
_TOKENS = re.compile(r"<((?:expired |foreign )?token of (?:the )?\w+(?: [^<>]*)?)>")


class Player:
    """Plays one transcript. ``redis`` is None with the embedded broker."""

    def __init__(self, relay: RelayProcess, redis: RedisServer | None) -> None:
        self._relay = relay
        self._redis = redis
        self._names: Names = {}
        self._sockets: dict[str, ClientConnection] = {}
        self._answers: dict[str, tuple[int, str]] = {}
        self._http = httpx.AsyncClient(base_url=relay.base_url, timeout=LIMIT_S)

    async def play(self, transcript: Transcript) -> None:
        """Play it to its end; an ``AssertionError`` names the line that went otherwise."""
        lines = list(transcript.lines)
        try:
            while lines:
                line = lines.pop(0)
                if line.text == "in any order":
                    group = list(itertools.takewhile(partial(_continues, line), lines))
                    del lines[: len(group)]
                else:
                    group = [line] * line.times
                try:
                    await self._step(group)
                except Exception as error:
                    raise AssertionError(f"line {line.number}: {line.text}\n{error!r}") from error
        finally:
            await self._leave()

    async def _step(self, group: Sequence[Line]) -> None:
        line = group[0]
        if line.sends:
            for _ in group:
                await self._send(line.actor, self._filled(line.text))
        elif line.text.startswith("close "):
            await self._expect_close(line.actor, line.text)
        elif found := _ANSWER.fullmatch(line.text):
            self._expect_answer(line.actor, int(found[1]), found[2])
        elif len({other.text for other in group}) == 1:
            for _ in group:
                await self._expect(line.actor, line.text)
        else:
            await self._expect_all(line.actor, [other.text for other in group])

    async def _leave(self) -> None:
        for socket in self._sockets.values():
            await socket.close()
        await self._http.aclose()

    # -- sending ----------------------------------------------------------------------------------

    async def _send(self, actor: str, text: str) -> None:
        if actor == "operator":
            await anyio.to_thread.run_sync(self._operate, text)
        elif actor == "redis":
            assert self._redis is not None
            with self._redis.client() as client:
                client.execute_command(*shlex.split(text))
        elif found := _HTTP.fullmatch(text):
            await self._request(actor, found[1], found[2], found[3] or "")
        elif text.startswith("bytes "):
            (await self._socket(actor)).transport.write(bytes.fromhex(text[len("bytes ") :]))
        elif text.startswith("close "):
            await self._sockets[actor].close(int(text.split()[1]))
        else:
            await (await self._socket(actor)).send(text)

    def _operate(self, what: str) -> None:
        if what in ("stop", "stop at once"):
            self._relay.terminate()
            if what == "stop at once":
                self._relay.wait_for_line("shutting down")
                self._relay.terminate()
            return
        assert self._redis is not None
        {"stop redis": self._redis.kill, "start redis": self._redis.start}[what]()

    async def _socket(self, actor: str) -> ClientConnection:
        """Return the actor's open socket, logged in if it is new."""
        socket = self._sockets.get(actor)
        if socket is None or socket.close_code is not None:
            await self._open(actor, f"/video/connect?api_key={API_KEY}", None)
            details = {"id": actor, "name": actor.capitalize()}
            socket = self._sockets[actor]
            await socket.send(json.dumps({"token": _token(f"of {actor}"), "user_details": details}))
            welcome = json.loads(await asyncio.wait_for(socket.recv(), LIMIT_S))
            assert welcome["type"] == "connection.ok", welcome
        return socket

    async def _open(self, actor: str, path: str, headers: dict[str, str] | None) -> None:
        url = self._relay.base_url.replace("http", "ws", 1) + path
        try:
            self._sockets[actor] = await connect(
                url, additional_headers=headers, compression=None, ping_interval=None, proxy=None
            )
            self._answers[actor] = (101, "")
        except InvalidStatus as refused:
            body = bytes(refused.response.body or b"").decode()
            self._answers[actor] = (refused.response.status_code, body)

    async def _request(self, actor: str, method: str, path: str, rest: str) -> None:
        if method == "GET" and "/video/call" not in path:
            name, _, value = rest.partition(": ")
            await self._open(actor, path, {name: value} if name else None)
            return
        body = rest.encode()
        answer = await self._http.request(
            method, path, params=None if actor == "stream" else _with_key(path), content=body,
            headers=_headers(actor, body),
        )  # fmt: skip
        self._answers[actor] = (answer.status_code, answer.text)

    # -- receiving --------------------------------------------------------------------------------

    def _expect_answer(self, actor: str, status: int, body: str | None) -> None:
        got_status, got_body = self._answers.pop(actor)
        assert got_status == status, (got_status, got_body)
        if body is not None:
            wrong = mismatch(pattern(body), json.loads(got_body), self._names)
            assert wrong is None, (wrong, got_body)

    async def _expect_close(self, actor: str, text: str) -> None:
        _, code, reason = f"{text} ".split(" ", 2)
        socket = self._sockets[actor]
        try:
            async with asyncio.timeout(LIMIT_S):
                while json.loads(await socket.recv())["type"] in _UNASKED:
                    pass
            raise AssertionError("a frame came instead")
        except ConnectionClosed:
            pass
        assert socket.close_code == int(code), (socket.close_code, socket.close_reason)
        assert mismatch(reason.strip(), socket.close_reason, self._names) is None, (
            socket.close_reason
        )

    async def _expect(self, actor: str, text: str) -> None:
        wanted = pattern(text)
        while True:
            frame = await self._receive(actor, wanted.get("type"))
            wrong = mismatch(wanted, frame, self._names)
            if wrong is None:
                return
            # Lists of watchers that follow each other closely may be sent as one, or as several.
            assert frame["type"] == "call.watchers", f"{wrong} in {frame}"

    async def _expect_all(self, actor: str, texts: list[str]) -> None:
        wanted = [pattern(text) for text in texts]
        types = {one["type"] for one in wanted}
        frames = [await self._receive(actor, *types) for _ in texts]
        for order in itertools.permutations(frames):
            names = dict(self._names)
            pairs = zip(wanted, order, strict=True)
            if all(mismatch(one, frame, names) is None for one, frame in pairs):
                self._names = names
                return
        raise AssertionError(f"got {frames}")

    async def _receive(self, actor: str, *wanted: str) -> dict[str, Any]:
        """Return the next frame, leaving out what comes at any time unless it is wanted."""
        socket = self._sockets[actor]
        async with asyncio.timeout(LIMIT_S):
            while True:
                frame: dict[str, Any] = json.loads(await socket.recv())
                if frame["type"] not in _UNASKED or frame["type"] in wanted:
                    return frame

    # -- what lines say ---------------------------------------------------------------------------

    def _filled(self, text: str) -> str:
        if "<now>" in text:
            self._names.setdefault("now", time.time_ns())
        text = _TOKENS.sub(lambda found: _token(found[1]), text)
        return filled(text, self._names)


def _continues(line: Line, other: Line) -> bool:
    return other.actor == line.actor and not other.sends


def _with_key(path: str) -> dict[str, str]:
    query = dict(httpx.URL(path).params)
    return {"api_key": API_KEY, **query}


def _headers(actor: str, body: bytes) -> dict[str, str]:
    if actor == "stream":
        signature = signing.stream_signature(body, API_SECRET)
        return {"x-api-key": API_KEY, "x-signature": signature, "x-webhook-attempt": "1"}
    if actor == "guest":
        return {"stream-auth-type": "anonymous"}
    token = _token("of the server" if actor == "backend" else f"of {actor}")
    return {"authorization": token, "stream-auth-type": "jwt"}


def _token(words: str) -> str:
    """Return the token that words such as ``expired token of john`` describe."""
    found = re.fullmatch(r"(expired |foreign )?(?:token )?of (the server|\w+)(?: (.*))?", words)
    assert found is not None, words
    kind, who, rest = (part or "" for part in found.groups())
    now = time.time()
    claims: dict[str, Any] = {}
    if rest == "before its time":
        return _signed({"user_id": who, "nbf": int(now) + 3600})
    if rest == "issued ahead":
        return _signed({"user_id": who, "iat": int(now) + 3600})
    if seconds := re.fullmatch(r"for (\d+) s", rest):
        claims["life_s"] = float(seconds[1])
    elif rest.startswith("for "):
        claims["call_cids"] = [rest.removeprefix("for ")]
    if kind == "expired ":
        claims["life_s"] = -1.0
    secret = "another secret of thirty-two bytes or so" if kind == "foreign " else API_SECRET
    user_id = None if who == "the server" else who
    return tokens.issue(secret, user_id=user_id, now=now, **claims)


def _signed(claims: dict[str, Any]) -> str:
    import jwt

    return jwt.encode(claims, API_SECRET, algorithm="HS256")
