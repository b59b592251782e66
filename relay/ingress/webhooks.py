"""The webhook door, ``POST /webhooks/{source}``: read, verify, publish, answer.

The answer comes after the atomic step and not before: a sender that got 200 may forget the event,
one that got 503 repeats it. How a source signs is none of this module's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http, logs, metrics
from relay.doors import Door
from relay.errors import NotFound, Refused
from relay.http import Clock
from relay.ingress.sources import Accepted, Source
from relay.registry import Registry

log: Final = logs.get(__name__)


def routes(
    *,
    sources: Mapping[str, Source],
    door: Door,
    registry: Registry,
    clock: Clock,
    max_bytes: int,
) -> list[Route]:
    """Return the door's one route. ``max_bytes`` bounds a body as it is sent."""
    ignored = metrics.IGNORED.labels(door.name)

    async def receive(request: Request) -> Response:
        source = sources.get(request.path_params["source"])
        if source is None:
            raise NotFound("there is no webhook source of this name", reason="unknown_source")
        raw = await http.read_body(request, max_bytes)
        accepted = _accepted(source, request, raw, clock())
        if accepted.event is None:
            ignored.inc()
            return http.answer(request, {"status": "ignored", "event_id": accepted.event_id})
        if accepted.body is not None:
            await registry.learn(accepted.body, clock())
        publication = await http.publish(request, door, accepted.event, accepted.origins)
        status = "duplicate" if publication.duplicate else "published"
        return http.answer(request, {"status": status, **http.position_fields(publication)})

    return [Route("/webhooks/{source}", http.publishing(receive, door), methods=["POST"])]


def _accepted(source: Source, request: Request, raw: bytes, now_ns: int) -> Accepted:
    """Ask the source; a refusal is logged, since the sender may not show it to anybody."""
    try:
        return source.accept(request.headers, raw, now_ns)
    except Refused as error:
        log.warning("webhook refused", source=source.name, reason=error.reason)
        raise
