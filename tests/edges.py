"""The HTTP edges on the embedded broker, with a clock that stands still until it is told to move.

What another module gives (who watches, whether Redis is well) is a fake of our own interface.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.types import ASGIApp

from relay import api, http, metrics, signing, tokens, wire
from relay.broker import Broker, Limits, Store
from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
from relay.calls import Participant, Session
from relay.doors import Door
from relay.egress.sinks import Checked
from relay.errors import Unavailable, UnknownConnection
from relay.events import Event, Publication, given_event
from relay.hooks import Hook
from relay.ingress import load_sources, webhooks
from relay.registry import Registry
from relay.tokens import Keys
from relay.users import User
from tests.conformance.required import check_answer, check_event

KEY = "key"
SECRET = "a secret of at least thirty-two bytes"
OLD_SECRET = "the one before, just as long as it is"
KEYS: Keys = {KEY: (SECRET, OLD_SECRET), "other-key": ("the secret of another key, long enough",)}
NOW_NS = 1_800_000_000_000_000_000
MAX_BYTES = 100_000


class Clock:
    """Nanoseconds since 1970, moved by hand."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Watches:
    """The gateway's side: the connections of ``open`` exist, everything asked is written down.

    ``meanwhile`` runs once, while somebody waits for the process that has the connection.
    """

    def __init__(self) -> None:
        self.open = {"node-1-mac": "john"}
        self.attached: list[tuple[str, str, str]] = []
        self.returning: list[bool] = []
        self.expelled: list[tuple[str, str]] = []
        self.revoked: list[tuple[str | None, float]] = []
        self.away = False
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def attach(
        self, connection_id: str, user_id: str, cids: Sequence[str], *, returning: bool = False
    ) -> None:
        if self.away:
            raise Unavailable("the process that owns the connection does not answer")
        if self.open.get(connection_id) != user_id:
            raise UnknownConnection("connection_id is not an open socket of this user")
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        self.returning.append(returning)
        self.attached.extend((connection_id, user_id, cid) for cid in cids)

    async def expel(self, user_id: str, cid: str) -> None:
        self.expelled.append((user_id, cid))

    async def revoke(self, user_id: str | None, before_s: float) -> None:
        self.revoked.append((user_id, before_s))


class Announcements:
    """Publishes like the relay's own announcer, and writes down whom else it told."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self.members: list[tuple[str, list[str]]] = []
        self.told: list[tuple[str, list[str], dict[str, Any]]] = []
        self.known: set[tuple[str, str]] = set()

    async def announce(
        self,
        cid: str,
        kind: str,
        fields: Mapping[str, Any],
        *,
        members: Collection[str] = (),
        event_id: str | None = None,
    ) -> Publication:
        body = {"type": kind, "created_at": self._clock(), "call_cid": cid, **fields}
        event = given_event(
            body, event_id=event_id or uuid4().hex, sender="relay", identity=event_id,
            fingerprint="",
        )  # fmt: skip
        check_event(wire.decode_object(event.body))
        publication = await self._broker.publish(event)
        if event_id is not None:
            self.known.add((cid, event_id))
        if not publication.duplicate:
            self.members.append((kind, sorted(members)))
        return publication

    def has_announced(self, cid: str, event_id: str) -> bool:
        return (cid, event_id) in self.known

    async def tell(self, user_ids: Collection[str], kind: str, fields: Mapping[str, Any]) -> None:
        content = {"type": kind, "created_at": self._clock(), **fields}
        check_event(wire.with_rfc3339(content))
        self.told.append((kind, sorted(user_ids), dict(fields)))


class Joins:
    """Sessions by their call, as the relay keeps them while a socket watches."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.running: dict[str, Session] = {}

    async def join(self, cid: str, user: User, role: str) -> Session:
        session = self.running.get(cid) or Session(id="s1", started_at=self._clock())
        participant = Participant(
            user_id=user.id, user_session_id="p1", role=role, joined_at=self._clock()
        )
        everyone = (*session.participants, participant)
        self.running[cid] = msgspec.structs.replace(session, participants=everyone)
        return self.running[cid]

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        return {cid: self.running[cid] for cid in cids if cid in self.running}

    async def end(self, cid: str) -> None:
        self.running.pop(cid, None)


class Receivers:
    """The deliveries' side: every queue and topic is there, but for those that are ``missing``."""

    def __init__(self) -> None:
        self.asked: list[Hook] = []
        self.missing: set[str] = set()

    async def check(self, hook: Hook) -> Checked:
        self.asked.append(hook)
        gone = hook.aws.target in self.missing
        return Checked("NotFound: it is not there" if gone else None, {"arn": hook.aws.target})


class AwayBroker(MemoryBroker):
    """A broker whose Redis is away while ``away`` is set."""

    away = False

    async def publish(self, event: Event) -> Publication:
        if self.away:
            raise Unavailable("redis does not answer: try again", retry_after=0.2)
        return await super().publish(event)


@dataclass
class Edges:
    """The composed edges, what they were made of, and a client."""

    client: httpx.AsyncClient
    app: ASGIApp
    broker: AwayBroker
    store: Store
    clock: Clock
    watches: Watches
    announcer: Announcements
    joins: Joins
    receivers: Receivers
    problems: dict[str, str | None] = field(default_factory=dict)

    async def published(self, cid: str) -> list[dict[str, Any]]:
        """Return what the call's history holds, decoded."""
        history = await self.broker.history(cid, 0)
        return [wire.decode_object(entry.body) for entry in history.entries]

    async def kinds(self, cid: str = "default:demo") -> list[str]:
        """Return the types of the events of a call."""
        return [event["type"] for event in await self.published(cid)]

    async def post(self, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        """Post JSON as Stream's SDKs do: api_key in the query, the bare token in a header."""
        content = b"" if body is None else wire.encode(body)
        params = {"api_key": KEY} | kwargs.pop("params", {})
        return await self.client.post(path, content=content, params=params, **kwargs)


def token(user_id: str | None = None, secret: str = SECRET, **claims: Any) -> dict[str, str]:
    """Return the headers of a request with a token: a server's without ``user_id``."""
    issued = tokens.issue(secret, user_id=user_id, now=NOW_NS / 1e9, **claims)
    return {"authorization": issued, "stream-auth-type": "jwt"}


def signed(body: bytes, secret: str = SECRET, key: str = KEY, **more: str) -> dict[str, str]:
    """Return the headers of a webhook as Stream sends them."""
    return {
        "x-signature": signing.stream_signature(body, secret),
        "x-api-key": key,
        "x-webhook-id": "0d6c2b44-8f4e-4a39-bb0a-1a2b3c4d5e6f",
        "x-webhook-attempt": "1",
        **more,
    }


def counted(metric: str, **labels: str) -> float:
    """Return the value of a counter, 0 when it was never touched."""
    metrics.settle()
    return REGISTRY.get_sample_value(f"{metric}_total", labels) or 0.0


def refused(door: str, reason: str) -> float:
    """Return how often a door refused something for a reason."""
    return counted("relay_refused", door=door, reason=reason)


def compose(
    *,
    broker: Broker,
    store: Store,
    clock: Clock,
    watches: Watches,
    announcer: Announcements,
    joins: Joins,
    receivers: Receivers,
    problems: Mapping[str, str | None],
    warnings: Collection[str] = (),
    sources: str = "",
    origins: Collection[str] = ("*",),
    **options: Any,
) -> ASGIApp:
    """Compose the edges as the application does."""

    def ready() -> api.Readiness:
        return api.Readiness(problems, tuple(warnings))

    found = load_sources(sources, KEYS, max_bytes=MAX_BYTES, freshness_s=3600)
    routes = [
        *webhooks.routes(
            sources=found,
            door=Door("webhook", broker),
            registry=Registry(store),
            clock=clock,
            max_bytes=MAX_BYTES,
        ),
        *api.routes(
            keys=KEYS,
            store=store,
            door=Door("api", broker),
            watches=watches,
            announcer=announcer,
            joins=joins,
            receivers=receivers,
            clock=clock,
            ready=ready,
            max_bytes=MAX_BYTES,
            **options,
        ),
    ]
    app = Starlette(routes=routes, exception_handlers=http.exception_handlers())
    app.router.redirect_slashes = False
    return http.wrap_cors(app, origins)


@asynccontextmanager
async def edges(**options: Any) -> AsyncIterator[Edges]:
    """Give the edges with a client; ``options`` go to ``compose``."""
    clock, watches, receivers = Clock(), Watches(), Receivers()
    store = MemoryStore(MemoryOutbox(clock))
    problems: dict[str, str | None] = {}
    broker = AwayBroker(Limits(), clock, "node")
    announcer, joins = Announcements(broker, clock), Joins(clock)
    app = compose(
        broker=broker, store=store, clock=clock, watches=watches, announcer=announcer, joins=joins,
        receivers=receivers, problems=problems, **options,
    )  # fmt: skip
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://relay", event_hooks={"response": [_conforms]}
    ) as client:
        yield Edges(
            client, app, broker, store, clock, watches, announcer, joins, receivers, problems
        )


async def _conforms(response: httpx.Response) -> None:
    """Hold every answer to what Stream's protocol requires of it."""
    await response.aread()
    if response.content and response.headers["content-type"].startswith("application/json"):
        request = response.request
        check_answer(request.method, request.url.path, response.status_code, response.json())
