"""For operators' machines: is the process alive, can it serve, what has it counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http, metrics
from relay.errors import Unavailable


class Readiness(NamedTuple):
    """What is checked, by name: None when it is well, else what is wrong; and what may go wrong."""

    problems: Mapping[str, str | None]
    warnings: tuple[str, ...] = ()


Probe = Callable[[], Readiness]
"""Tells whether this process can serve, from what is known."""


def routes(ready: Probe) -> list[Route]:
    """Return ``/healthz``, ``/readyz`` and ``/metrics``."""

    async def healthz(request: Request) -> Response:
        return http.answer(request, {"status": "ok"})

    async def readyz(request: Request) -> Response:
        found = ready()
        checks = {name: problem or "ok" for name, problem in found.problems.items()}
        said = {"checks": checks, "warnings": found.warnings}
        bad = [f"{name}: {problem}" for name, problem in found.problems.items() if problem]
        if not bad:
            return http.answer(request, {"status": "ok", **said})
        error = Unavailable("not ready: " + "; ".join(bad), retry_after=1)
        return http.refusal(request, error, extra={"status": "unavailable", **said})

    async def show(_: Request) -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE_LATEST)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", show, methods=["GET"]),
    ]
