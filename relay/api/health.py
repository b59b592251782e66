"""For operators' machines: is the process alive, can it serve, what has it counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http, metrics
from relay.errors import Unavailable


class Remark(str):
    """Something an operator should look at although it keeps the process from nothing."""

    __slots__ = ()


Probe = Callable[[], Awaitable[Mapping[str, str | None]]]
"""Returns what is checked, by name: None when it is well, else what is wrong. Bounded in time.

A ``Remark`` is shown, and leaves the process ready.
"""


def routes(ready: Probe) -> list[Route]:
    """Return ``/healthz``, ``/readyz`` and ``/metrics``."""

    async def healthz(request: Request) -> Response:
        return http.answer(request, {"status": "ok"})

    async def readyz(request: Request) -> Response:
        problems = await ready()
        checks = {name: str(problem or "ok") for name, problem in problems.items()}
        bad = [
            f"{name}: {problem}"
            for name, problem in problems.items()
            if problem and not isinstance(problem, Remark)
        ]
        if not bad:
            return http.answer(request, {"status": "ok", "checks": checks})
        error = Unavailable("not ready: " + "; ".join(bad), retry_after=1)
        return http.refusal(request, error, extra={"status": "unavailable", "checks": checks})

    async def show(_: Request) -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE_LATEST)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", show, methods=["GET"]),
    ]
