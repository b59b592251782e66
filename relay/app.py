"""The composition root: the one place that chooses a broker and wires the edges to it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from relay import api, calls, egress, forwarded, hooks, http, ingress, metrics
from relay.announcer import Announcer
from relay.broker import Broker, Inbox, Limits, Outbox, Store
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
from relay.tasks import Tasks, together

if TYPE_CHECKING:
    from relay.ingress import IngestDoor, Source, SqsDoor

READY_EVERY_S: Final = 1.0
GOODBYES_S: Final = 2.0
"""How long everything together may take to tell Redis that it goes. Whoever stops a relay counts on
5 s beside its own limits, of which leaving the port takes half a one, and deliveries are recorded
for 2 s at most meanwhile."""
API_MAX_BYTES: Final = 1_048_576
"""Size of an API request's body; more where ``custom`` may be long and escaped."""


class App:
    """A relay that is wired but not listening: ``asgi`` for HTTP, ``sockets`` for upgrades."""

    def __init__(self, settings: Settings, *, demo: bool = False) -> None:
        self._settings = settings
        self._broker, self._store, self._sessions, self._tickets, self._outbox, inbox = _backends(
            settings
        )
        self._hub = Hub(self._broker)
        bounds = ingress.Bounds(settings.custom_max_bytes, settings.webhook_max_bytes)
        self._live = ingress.LiveDoor(self._hub.deliver_volatile, time.time_ns, bounds)
        self._ingest = None if inbox is None else self._ingest_door(inbox, bounds)
        self._registry = Registry(self._store)
        self._sources = self._webhook_sources()
        self._queue = self._queue_door() if settings.ingest_sqs_url else None
        self._hook_networks = forwarded.read_networks(settings.hook_allow)
        self._hooks_file = api.HooksFile(settings.hooks, self._hook_rules())
        self._sink = egress.AnySink(
            api_key=settings.api_key,
            secret=settings.api_secret,
            clock=time.time_ns,
            networks=self._hook_networks,
        )
        self._dispatcher = egress.Dispatcher(
            outbox=self._outbox,
            store=self._store,
            sink=self._sink,
            rng=Random(),  # noqa: S311 - jitter, not secrets
            bounds=egress.Bounds(attempts=settings.hook_attempts),
            restore=partial(self._hooks_file.apply, self._store),
        )
        self._draining = False
        self._tasks = Tasks("app")
        self._new_id = _id_source()
        self.sockets = self._sockets()
        self._announcer = Announcer(self._broker, clock=time.time_ns, new_id=self._new_id)
        self._participants = self._take_part()
        self.asgi = self._asgi(demo)

    async def start(self) -> None:
        """Connect to the broker and begin to relay; raises ``Unavailable``."""
        await self._broker.start(self._hub, self._live.receive)
        await self._hooks_file.apply(self._store)
        await self._hub.start()
        await self.sockets.start()
        self._participants.start()
        await self._dispatcher.start()
        if self._ingest is not None:
            self._ingest.start()
        if self._queue is not None:
            await self._queue.start()
        self._tasks.keep(self._tell_readiness, "telling whether it is ready")

    def _hook_rules(self) -> hooks.Rules:
        """Return what the hooks of the operator's file must keep to."""
        return hooks.Rules(
            time.time_ns(), lambda: str(uuid4()), self._hook_networks, egress.has_aws()
        )

    def turn_unready(self) -> None:
        """Say from now on that this process is about to end."""
        self._draining = True

    async def drain(self) -> None:
        """Let the sockets go, and finish the deliveries that are under way.

        With the embedded broker there is no other process for the sockets to go to.
        """
        limit_s = self._settings.drain_timeout
        reading = () if self._queue is None else (self._queue.drain(limit_s),)
        await asyncio.gather(
            *reading,
            self.sockets.drain(limit_s, handover=bool(self._settings.redis_url)),
            self._dispatcher.drain(limit_s),
        )

    def dismiss(self) -> None:
        """Close the sockets that are left at once."""
        self.sockets.dismiss()

    async def aclose(self) -> None:
        """End everything that ``start`` began; a Redis that does not answer is not waited for."""
        await self._tasks.aclose()
        hanging_up = asyncio.get_running_loop().call_later(GOODBYES_S, self._broker.hang_up)
        doors = (door for door in (self._queue, self._ingest) if door is not None)
        edges = (*doors, self._participants, self.sockets, self._dispatcher)
        # What each has to say to Redis has nothing to do with what the others say.
        await together([edge.aclose() for edge in edges])
        await self._hub.aclose()
        await self._broker.aclose()
        hanging_up.cancel()

    # -- wiring -----------------------------------------------------------------------------------

    def _door(self, name: str) -> Door:
        return Door(name, self._broker, self._settings.publish_timeout)

    def _ingest_door(self, inbox: Inbox, bounds: ingress.Bounds) -> IngestDoor:
        return ingress.IngestDoor(
            self._door("ingest"),
            inbox,
            time.time_ns,
            bounds,
            rng=Random(),  # noqa: S311 - jitter, not secrets
        )

    def _webhook_sources(self) -> dict[str, Source]:
        return ingress.load_sources(
            self._settings.sources,
            self._settings.accepted_keys,
            max_bytes=self._settings.webhook_max_bytes,
            freshness_s=self._settings.webhook_freshness,
        )

    def _queue_door(self) -> SqsDoor:
        settings, window_s = self._settings, self._settings.dedupe_window
        api_key = settings.ingest_sqs_api_key or settings.api_key
        return ingress.SqsDoor(
            self._door("sqs"),
            ingress.open_queue(settings),
            ingress.queue_reader(self._sources, api_key, window_s),
            self._registry,
            time.time_ns,
            window_s=window_s,
            rng=Random(),  # noqa: S311 - jitter, not secrets
        )

    def _sockets(self) -> Sockets:
        settings = self._settings
        return Sockets(
            hub=self._hub,
            broker=self._broker,
            store=self._store,
            tickets=self._tickets,
            door=self._door("socket"),
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
            repeats_s=self._settings.dedupe_window,
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
            routes=[
                *self._webhook_routes(),
                *self._api_routes(),
                *self._operator_routes(),
                *self._page_routes(demo),
            ],
            exception_handlers=http.exception_handlers(),
        )
        # A path is what it is: a redirect would drop the body, and is no answer in six keys.
        starlette.router.redirect_slashes = False
        return http.wrap_cors(starlette, self._settings.origins)

    def _webhook_routes(self) -> list[Route]:
        return webhooks.routes(
            sources=self._sources,
            door=self._door("webhook"),
            registry=self._registry,
            clock=time.time_ns,
            max_bytes=self._settings.webhook_max_bytes,
        )

    def _api_routes(self) -> list[Route]:
        settings = self._settings
        return api.routes(
            keys=settings.accepted_keys,
            store=self._store,
            door=self._door("api"),
            watches=self.sockets,
            announcer=self._announcer,
            joins=self._participants,
            clock=time.time_ns,
            ready=self._readiness,
            media=api.load_media(settings.media),
            http_rate=settings.http_rate,
            custom_limit=settings.custom_max_bytes,
            max_bytes=max(API_MAX_BYTES, 8 * settings.custom_max_bytes),
            strict_calls=settings.strict_calls,
            guests=settings.guests,
            receivers=self._sink,
            hook_networks=self._hook_networks,
            aws=egress.has_aws(),
            repeats_s=settings.dedupe_window,
        )

    def _operator_routes(self) -> list[Route]:
        return api.operator_routes(
            store=self._store,
            outbox=self._outbox,
            troubles=self._dispatcher.troubles,
            clock=time.time_ns,
            token=self._settings.admin_token,
            door=self._door("api"),
        )

    def _page_routes(self, demo: bool) -> list[Route]:
        return api.page_routes(self._settings.api_key if demo else None)

    async def _tell_readiness(self) -> None:
        """Keep the metric true, whoever asks for it, and whichever process answers."""
        while True:
            for hop, problem in self._readiness().problems.items():
                metrics.READY.labels(hop).set(problem is None)
            await asyncio.sleep(READY_EVERY_S)

    def _readiness(self) -> api.Readiness:
        """Return what keeps this process from serving; asks nobody, so it can be told at once."""
        problems: dict[str, str | None] = {"draining": None, "broker": None}
        if self._draining:
            problems["draining"] = "this process is shutting down"
        health = self._broker.health()
        problems.update(health.problems)
        troubles = self._dispatcher.troubles().items()
        warnings = [f"hook {hook_id}: {trouble}" for hook_id, trouble in troubles]
        if self._queue is not None and self._queue.problem is not None:
            warnings.append(f"queue: {self._queue.problem}")
        return api.Readiness(problems, (*health.warnings, *warnings))


class Backends(NamedTuple):
    """What keeps and carries everything: all of one kind, on one Redis or in this process."""

    broker: Broker
    store: Store
    sessions: Sessions
    tickets: Tickets
    outbox: Outbox
    inbox: Inbox | None


def _backends(settings: Settings) -> Backends:
    """Return what the settings ask for."""
    limits = Limits(
        history_count=settings.history_count,
        history_age_s=settings.history_age,
        dedupe_window_s=settings.dedupe_window,
        publish_timeout_s=settings.publish_timeout,
        replicas=settings.redis_replicas,
        outbox_bytes=settings.outbox_bytes,
        dead_letter_bytes=settings.dead_letter_bytes,
    )
    node = uuid4().hex[:16]
    if not settings.redis_url:
        from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
        from relay.broker.memory_sessions import MemorySessions
        from relay.broker.memory_tickets import MemoryTickets

        clock = time.time_ns
        owed = MemoryOutbox(clock, limits)
        memory = MemoryBroker(limits, clock, node, outbox=owed)
        return Backends(
            memory, MemoryStore(owed), MemorySessions(clock), MemoryTickets(clock), owed, None
        )
    from relay.broker import redis

    broker = redis.RedisBroker(settings.redis_url, settings.redis_prefix, limits, node)
    return Backends(
        broker,
        redis.RedisStore(broker),
        redis.RedisSessions(broker),
        redis.RedisTickets(broker),
        redis.RedisOutbox(broker, lease_s=settings.hook_lease),
        redis.RedisInbox(broker),
    )


def _id_source() -> Callable[[], str]:
    """Return a source of ids that no other process has: random once, then counted.

    An id of an event need not be a secret, and asking the kernel for 16 random bytes costs more
    than everything else that the relay does with a command's fields.
    """
    prefix, numbers = uuid4().hex[:16], itertools.count()
    return lambda: f"{prefix}{next(numbers):016x}"
