"""The composition root: the one place that chooses a broker and wires the edges to it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from relay import api, calls, forwarded, http, ingress, metrics
from relay.announcer import Announcer
from relay.broker import Broker, Inbox, Limits, Store, Unavailable
from relay.broker.seats import Sessions
from relay.broker.tickets import Tickets
from relay.doors import Door
from relay.gateway.hub import Hub
from relay.gateway.session import Rules
from relay.gateway.sockets import SocketLimits, Sockets
from relay.ingress import webhooks
from relay.participants import Participants
from relay.registry import Registry
from relay.settings import Settings

if TYPE_CHECKING:
    from relay.ingress import IngestDoor

API_MAX_BYTES: Final = 1_048_576
"""Size of an API request's body; more where ``custom`` may be long and escaped."""


class App:
    """A relay that is wired but not listening: ``asgi`` for HTTP, ``sockets`` for upgrades."""

    def __init__(self, settings: Settings, *, demo: bool = False) -> None:
        self._settings = settings
        self._broker, self._store, self._sessions, self._tickets, inbox = _backends(settings)
        self._hub = Hub(self._broker)
        self._live = ingress.LiveDoor(
            self._hub.deliver_volatile,
            time.time_ns,
            custom_limit=settings.custom_max_bytes,
            max_bytes=settings.webhook_max_bytes,
        )
        self._ingest = None if inbox is None else self._ingest_door(inbox)
        self._draining = False
        self._new_id = _id_source()
        self.sockets = self._sockets()
        self._announcer = Announcer(self._broker, clock=time.time_ns, new_id=self._new_id)
        self._participants = self._take_part()
        self.asgi = self._asgi(demo)

    async def start(self) -> None:
        """Connect to the broker and begin to relay; raises ``Unavailable``."""
        await self._broker.start(self._hub, self._live.receive)
        await self._hub.start()
        await self.sockets.start()
        self._participants.start()
        if self._ingest is not None:
            self._ingest.start()

    async def drain(self) -> None:
        """Turn unready and let the sockets go."""
        self._draining = True
        await self.sockets.drain(self._settings.drain_timeout)

    async def aclose(self) -> None:
        """End everything that ``start`` began."""
        if self._ingest is not None:
            await self._ingest.aclose()
        await self._participants.aclose()
        await self.sockets.aclose()
        await self._hub.aclose()
        await self._broker.aclose()

    # -- wiring -----------------------------------------------------------------------------------

    def _ingest_door(self, inbox: Inbox) -> IngestDoor:
        return ingress.IngestDoor(
            Door("ingest", self._broker),
            inbox,
            time.time_ns,
            custom_limit=self._settings.custom_max_bytes,
            max_bytes=self._settings.webhook_max_bytes,
            rng=Random(),  # noqa: S311 - jitter, not secrets
        )

    def _sockets(self) -> Sockets:
        settings = self._settings
        return Sockets(
            hub=self._hub,
            broker=self._broker,
            store=self._store,
            tickets=self._tickets,
            door=Door("socket", self._broker),
            rules=Rules(
                keys=settings.accepted_keys,
                new_id=self._new_id,
                custom_limit=settings.custom_max_bytes,
                command_rate=settings.command_rate,
                command_burst=settings.command_burst,
                first_frame_s=settings.first_frame_timeout,
            ),
            limits=SocketLimits(
                frame_max_bytes=settings.frame_max_bytes,
                soft_buffer_bytes=settings.soft_buffer_bytes,
                hard_buffer_bytes=settings.hard_buffer_bytes,
                slow_timeout_s=settings.slow_timeout,
                user_connections=settings.user_connections,
                watch_limit=settings.watch_limit,
            ),
            secret=settings.api_secret,
            clock=time.time_ns,
            origins=settings.origins,
            trusted=forwarded.read_networks(settings.trusted_proxies),
            strict_calls=settings.strict_calls,
        )

    def _take_part(self) -> Participants:
        participants = Participants(
            sessions=self._sessions,
            broker=self._broker,
            store=self._store,
            announcer=self._announcer,
            occupancy=self.sockets,
            describe=self._describe,
            clock=time.time_ns,
            new_id=lambda: str(uuid4()),
            rng=Random(),  # noqa: S311 - jitter, not secrets
        )
        self.sockets.follow(participants.vacated)
        return participants

    async def _describe(self, cid: str) -> dict[str, Any] | None:
        """Return a call as events show it, None when it was never created."""
        call = await self._store.call(cid)
        if call is None:
            return None
        session = (await self._sessions.sessions([cid])).get(cid)
        taking_part = () if session is None else session.participants
        named = {call.created_by, *(participant.user_id for participant in taking_part)}
        return calls.response(call, await self._store.users(named), session)

    def _asgi(self, demo: bool) -> ASGIApp:
        starlette = Starlette(
            routes=[*self._webhook_routes(), *self._api_routes(), *self._page_routes(demo)],
            exception_handlers=http.exception_handlers(),
        )
        # A path is what it is: a redirect would drop the body, and is no answer in six keys.
        starlette.router.redirect_slashes = False
        return http.wrap_cors(starlette, self._settings.origins)

    def _webhook_routes(self) -> list[Route]:
        settings = self._settings
        sources = ingress.load_sources(
            settings.sources,
            settings.accepted_keys,
            max_bytes=settings.webhook_max_bytes,
            freshness_s=settings.webhook_freshness,
        )
        return webhooks.routes(
            sources=sources,
            door=Door("webhook", self._broker),
            registry=Registry(self._store),
            clock=time.time_ns,
            max_bytes=settings.webhook_max_bytes,
        )

    def _api_routes(self) -> list[Route]:
        settings = self._settings
        return api.routes(
            keys=settings.accepted_keys,
            store=self._store,
            door=Door("api", self._broker),
            watches=self.sockets,
            announcer=self._announcer,
            joins=self._participants,
            clock=time.time_ns,
            ready=self._problems,
            media=api.load_media(settings.media),
            http_rate=settings.http_rate,
            custom_limit=settings.custom_max_bytes,
            max_bytes=max(API_MAX_BYTES, 8 * settings.custom_max_bytes),
            strict_calls=settings.strict_calls,
            guests=settings.guests,
        )

    def _page_routes(self, demo: bool) -> list[Route]:
        return api.page_routes(self._settings.api_key if demo else None)

    async def _problems(self) -> Mapping[str, str | None]:
        """Return what keeps this process from serving, by name; None where all is well."""
        problems: dict[str, str | None] = {"draining": None, "broker": None}
        if self._draining:
            problems["draining"] = "this process is shutting down"
        try:
            await self._broker.ping()
        except Unavailable as error:
            problems["broker"] = error.message
        metrics.REDIS_UP.set(problems["broker"] is None)
        return problems


def _backends(settings: Settings) -> tuple[Broker, Store, Sessions, Tickets, Inbox | None]:
    """Return what keeps and carries everything, as the settings ask for it."""
    limits = Limits(
        history_count=settings.history_count,
        history_age_s=settings.history_age,
        dedupe_window_s=settings.dedupe_window,
        publish_timeout_s=settings.publish_timeout,
    )
    node = uuid4().hex[:16]
    if not settings.redis_url:
        from relay.broker.memory import MemoryBroker, MemoryStore
        from relay.broker.memory_sessions import MemorySessions
        from relay.broker.memory_tickets import MemoryTickets

        memory, clock = MemoryBroker(limits, time.time_ns, node), time.time_ns
        return memory, MemoryStore(), MemorySessions(clock), MemoryTickets(clock), None
    from relay.broker import redis

    broker = redis.RedisBroker(settings.redis_url, settings.redis_prefix, limits, node)
    store, sessions, tickets = (
        redis.RedisStore(broker), redis.RedisSessions(broker), redis.RedisTickets(broker),
    )  # fmt: skip
    return broker, store, sessions, tickets, redis.RedisInbox(broker)


def _id_source() -> Callable[[], str]:
    """Return a source of ids that no other process has: random once, then counted.

    An id of an event need not be a secret, and asking the kernel for 16 random bytes costs more
    than everything else that the relay does with a command's fields.
    """
    prefix, numbers = uuid4().hex[:16], itertools.count()
    return lambda: f"{prefix}{next(numbers):016x}"
