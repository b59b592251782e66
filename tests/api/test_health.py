from __future__ import annotations

import pytest

from relay.api.health import Remark
from tests.bad_input import SIX_KEYS
from tests.edges import Edges

pytestmark = pytest.mark.anyio


async def test_a_process_that_lives_is_healthy_whatever_else_is_wrong(relay: Edges) -> None:
    relay.problems["redis"] = "does not answer"
    response = await relay.client.get("/healthz")
    assert (response.status_code, response.json()["status"]) == (200, "ok")


async def test_a_process_is_ready_when_every_check_is_well(relay: Edges) -> None:
    relay.problems["redis"] = None
    response = await relay.client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert response.json()["checks"] == {"redis": "ok"}


async def test_a_process_that_is_not_ready_says_why(relay: Edges) -> None:
    relay.problems |= {"redis": "does not answer", "policy": None}
    response = await relay.client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, -1)
    assert response.json().keys() == SIX_KEYS | {"status", "checks"}
    assert response.json()["checks"] == {"redis": "does not answer", "policy": "ok"}
    assert response.json()["message"] == "not ready: redis: does not answer"
    assert response.headers["retry-after"] == "1"


async def test_a_remark_is_shown_and_leaves_the_process_ready(relay: Edges) -> None:
    relay.problems |= {"redis": None, "hook one": Remark("keeps failing")}
    response = await relay.client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    assert response.json()["checks"] == {"redis": "ok", "hook one": "keeps failing"}


async def test_what_is_counted_is_shown_to_prometheus(relay: Edges) -> None:
    await relay.client.get("/nowhere")
    response = await relay.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'relay_refused_total{door="http",reason="not_found"}' in response.text
