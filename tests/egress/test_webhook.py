"""The webhook sink against a receiver on a real socket: what it sends, and how an attempt ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import signing
from relay.egress.sinks import ANSWER_BYTES, Delivery, Result
from relay.egress.webhook import WebhookSink
from relay.forwarded import read_networks
from relay.hooks import Hook, HookType, Timestamps
from relay.retry import Outcome
from tests.egress import receiver as receivers
from tests.egress.receiver import Answer, Receiver, receiving, status

pytestmark = pytest.mark.anyio

KEY, SECRET = "mykey", "a secret of at least thirty-two bytes, with ümlauts"
NOW_NS: Final = 1_795_348_800_123_456_789
BODY: Final = (
    b'{"type":"custom","created_at":"2026-11-22T12:00:00.123456789Z","call_cid":"default:demo",'
    b'"custom":{"n":1.10,"created_at":"2026-11-22T12:00:00Z"},"event_id":"e1","epoch":"k","offset":7}'
)
LIMIT_S: Final = 6.0
SHORT_S: Final = 0.2


def hook(url: str, **fields: Any) -> Hook:
    return Hook(id="h1", hook_type=HookType.WEBHOOK, webhook_url=url, **fields)


def delivery(**fields: Any) -> Delivery:
    given: dict[str, Any] = {
        "delivery_id": "d1", "event_id": "e1", "cid": "default:demo", "type": "custom",
        "body": BODY, "attempt": 1,
    }  # fmt: skip
    return Delivery(**given | fields)


@asynccontextmanager
async def sink(networks: str = "127.0.0.0/8") -> AsyncIterator[WebhookSink]:
    made = WebhookSink(
        api_key=KEY, secret=SECRET, clock=lambda: NOW_NS, networks=read_networks(networks)
    )
    try:
        yield made
    finally:
        await made.aclose()


async def tried(answer: Answer, limit_s: float = LIMIT_S) -> tuple[Result, Receiver]:
    """Return how one attempt ended at a receiver that answers like this."""
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [answer]
        return await webhooks.send(hook(receiver.url), delivery(), limit_s), receiver


async def ended(answer: Answer, outcome: Outcome, limit_s: float, within_s: float) -> Result:
    """Return how an attempt ended that did so in this way and time, or the last one of three.

    The machine may stand still during one, for longer than the receiver has to answer.
    """
    for _ in range(3):
        result, _ = await tried(answer, limit_s)
        if result.outcome is outcome and result.latency_s < within_s:
            break
    return result


# -- what is sent ---------------------------------------------------------------------------------


async def test_it_posts_the_event_with_its_headers() -> None:
    async with receiving() as receiver, sink() as webhooks:
        result = await webhooks.send(hook(receiver.url + "?a=%2f"), delivery(attempt=2), LIMIT_S)
    [request] = receiver.requests
    assert (result.outcome, result.status, result.answer) == (Outcome.DELIVERED, 200, b"ok")
    assert (request.method, request.target) == ("POST", "/hook?a=%2f")
    assert request.body == BODY
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-webhook-id"] == "d1"
    assert request.headers["x-webhook-attempt"] == "2"
    assert request.headers["x-api-key"] == KEY
    assert request.headers["user-agent"].startswith("relay/")
    assert "content-encoding" not in request.headers
    signing.verify_stream(request.body, request.headers["x-signature"], [SECRET])


async def test_the_signature_of_standard_webhooks_covers_id_and_time() -> None:
    async with receiving() as receiver, sink() as webhooks:
        await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
    [request] = receiver.requests
    name, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    assert (name, at) == ("d1", str(NOW_NS // 10**9))
    signing.verify_standard(
        request.body, name, at, request.headers["webhook-signature"],
        [signing.standard_secret(SECRET)],
    )  # fmt: skip


async def test_gzip_is_said_in_a_header_and_the_signature_is_of_what_comes_out() -> None:
    async with receiving() as receiver, sink() as webhooks:
        await webhooks.send(hook(receiver.url, gzip=True), delivery(), LIMIT_S)
    [request] = receiver.requests
    assert request.headers["content-encoding"] == "gzip"
    assert gzip.decompress(request.body) == BODY
    signing.verify_stream(BODY, request.headers["x-signature"], [SECRET])


async def test_times_are_nanoseconds_where_the_hook_wants_them_and_custom_is_untouched() -> None:
    nanoseconds = Timestamps.NANOSECONDS
    async with receiving() as receiver, sink() as webhooks:
        await webhooks.send(hook(receiver.url, timestamps=nanoseconds), delivery(), LIMIT_S)
    [request] = receiver.requests
    assert json.loads(request.body)["created_at"] == 1_795_348_800_123_456_789
    assert b'"custom":{"n":1.10,"created_at":"2026-11-22T12:00:00Z"}' in request.body
    signing.verify_stream(request.body, request.headers["x-signature"], [SECRET])


# -- how an attempt ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (200, Outcome.DELIVERED),
        (299, Outcome.DELIVERED),
        (302, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (429, Outcome.RETRYABLE),
        (503, Outcome.RETRYABLE),
    ],
)
async def test_an_answer_means_an_outcome(code: int, outcome: Outcome) -> None:
    result, receiver = await tried(status(code, b"why", location="http://127.0.0.1:1/"))
    assert (result.outcome, result.status, result.answer) == (outcome, code, b"why")
    assert len(receiver.requests) == 1  # a redirect is not followed


async def test_no_content_is_a_success() -> None:
    async def empty(peer: receivers.Peer) -> bool:
        peer.writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        return True

    result, _ = await tried(empty)
    assert (result.outcome, result.answer) == (Outcome.DELIVERED, b"")


async def test_when_to_come_back_is_read() -> None:
    seconds, _ = await tried(status(429, retry_after="7"))
    assert seconds.retry_after_s == 7.0
    date, _ = await tried(status(503, retry_after="Sun, 22 Nov 2026 12:00:30 GMT"))
    assert date.retry_after_s == pytest.approx(29.9, abs=0.1)


async def test_a_receiver_that_says_nothing_is_a_timeout() -> None:
    result = await ended(receivers.stall, Outcome.TIMEOUT, SHORT_S, 1.0)
    assert (result.outcome, result.status) == (Outcome.TIMEOUT, None)
    assert result.answer == b"no answer within 0.2 s"
    assert SHORT_S <= result.latency_s < 1.0


async def test_a_head_that_drips_is_cut_at_the_limit() -> None:
    result = await ended(receivers.drip_head, Outcome.TIMEOUT, SHORT_S, 1.0)
    assert result.outcome is Outcome.TIMEOUT
    assert SHORT_S <= result.latency_s < 1.0


@pytest.mark.parametrize("answer", [receivers.drip_body, receivers.flood])
async def test_an_answer_counts_when_its_head_is_in_and_its_rest_is_not_waited_for(
    answer: Answer,
) -> None:
    result = await ended(answer, Outcome.DELIVERED, SHORT_S, 1.0)
    assert (result.outcome, result.status) == (Outcome.DELIVERED, 200)
    assert result.latency_s < 1.0


async def test_half_a_second_is_all_the_rest_of_an_answer_gets() -> None:
    result = await ended(receivers.drip_body, Outcome.DELIVERED, LIMIT_S, 1.5)
    assert result.outcome is Outcome.DELIVERED
    assert 0.4 < result.latency_s < 1.5
    assert 0 < len(result.answer) <= ANSWER_BYTES


async def test_of_a_long_answer_only_the_beginning_is_kept_and_the_connection_too() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [status(500, b"y" * 20_000)]
        results = [await webhooks.send(hook(receiver.url), delivery(), LIMIT_S) for _ in range(2)]
    assert [result.answer for result in results] == [b"y" * ANSWER_BYTES] * 2
    assert receiver.connections == 1


async def test_a_longer_answer_costs_the_connection() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [status(200, b"y" * 200_000)]
        for _ in range(2):
            await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
    assert receiver.connections == 2


@pytest.mark.parametrize("answer", [receivers.reset, receivers.garbage])
async def test_a_broken_connection_and_what_is_not_http_are_network_errors(answer: Answer) -> None:
    result, receiver = await tried(answer)
    assert (result.outcome, result.status) == (Outcome.NETWORK, None)
    assert result.answer
    assert len(receiver.requests) == 1


async def test_nobody_listening_is_a_network_error() -> None:
    async with receiving() as receiver, sink() as webhooks:
        url = receiver.url
    async with sink() as webhooks:
        result = await webhooks.send(hook(url), delivery(), LIMIT_S)
    assert result.outcome is Outcome.NETWORK
    assert b"refused" in result.answer.lower() or b"Connect call failed" in result.answer


async def test_a_name_that_does_not_exist_is_a_network_error() -> None:
    async with sink() as webhooks:
        result = await webhooks.send(hook("http://relay.invalid/"), delivery(), LIMIT_S)
    assert result.outcome is Outcome.NETWORK


async def test_what_the_sink_does_wrong_is_an_outcome_too() -> None:
    broken = delivery(body=b"no JSON")
    async with sink() as webhooks:
        to = hook("http://127.0.0.1:1/", timestamps=Timestamps.NANOSECONDS)
        result = await webhooks.send(to, broken, LIMIT_S)
    assert result.outcome is Outcome.NETWORK
    assert result.answer.startswith(b"the relay failed: ")


# -- connections ----------------------------------------------------------------------------------


async def test_connections_are_kept() -> None:
    async with receiving() as receiver, sink() as webhooks:
        for _ in range(5):
            await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
    assert [request.connection for request in receiver.requests] == [0] * 5


async def test_after_a_kept_connection_broke_the_next_attempt_takes_a_new_one() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [status(200), status(200), receivers.reset, status(200)]
        to = hook(receiver.url)
        both = [webhooks.send(to, delivery(), LIMIT_S) for _ in range(2)]
        await asyncio.gather(*both)  # two connections are kept now
        first = await webhooks.send(to, delivery(attempt=1), LIMIT_S)
        second = await webhooks.send(to, delivery(attempt=2), LIMIT_S)
        third = await webhooks.send(to, delivery(attempt=1), LIMIT_S)
    assert (first.outcome, second.outcome) == (Outcome.NETWORK, Outcome.DELIVERED)
    assert third.outcome is Outcome.DELIVERED
    attempts = [(r.headers["x-webhook-attempt"], r.connection) for r in receiver.requests[2:]]
    assert [attempt for attempt, _ in attempts] == ["1", "2", "1"]
    connections = [connection for _, connection in attempts]
    assert connections[0] in (0, 1)
    assert connections[1] == 2
    assert connections[2] in (0, 1)


async def test_a_receiver_that_breaks_off_sees_each_attempt_once() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [status(200), receivers.reset]
        for attempt in (1, 1, 2):
            await webhooks.send(hook(receiver.url), delivery(attempt=attempt), LIMIT_S)
    assert [r.headers["x-webhook-attempt"] for r in receiver.requests] == ["1", "1", "2"]


async def test_a_receiver_that_closes_after_every_answer_loses_nothing() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [receivers.close_after]
        for _ in range(20):
            attempt, outcome = 0, Outcome.NETWORK
            while outcome is not Outcome.DELIVERED:
                attempt += 1
                assert attempt <= 2
                result = await webhooks.send(hook(receiver.url), delivery(attempt=attempt), LIMIT_S)
                outcome = result.outcome


async def test_a_slow_receiver_does_not_delay_another() -> None:
    async with receiving() as slow, receiving() as fast, sink() as webhooks:
        slow.answers = [receivers.stall]
        stuck = [
            asyncio.create_task(webhooks.send(hook(slow.url), delivery(), 30.0)) for _ in range(300)
        ]
        await slow.until(300)
        for _ in range(3):  # the machine may stand still for one of them
            result = await webhooks.send(hook(fast.url), delivery(), 1.0)
            if result.latency_s < 0.5:
                break
        assert result.outcome is Outcome.DELIVERED
        assert result.latency_s < 0.5
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        ended = await asyncio.gather(*stuck, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)


async def test_cookies_are_not_kept() -> None:
    async with receiving() as receiver, sink() as webhooks:
        receiver.answers = [status(200, set_cookie="a=b; Path=/")]
        for _ in range(2):
            await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
    assert "cookie" not in receiver.requests[1].headers


# -- the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_closed_address_is_not_connected_to_however_it_is_written(host: str) -> None:
    async with receiving() as receiver, sink("") as webhooks:
        url = receiver.url.replace("127.0.0.1", host)
        result = await webhooks.send(hook(url), delivery(), LIMIT_S)
    assert (result.outcome, receiver.connections) == (Outcome.REFUSED, 0)
    assert b"RELAY_HOOK_ALLOW" in result.answer


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::]"])
async def test_odd_spellings_lead_nowhere(host: str) -> None:
    async with receiving() as receiver, sink("") as webhooks:
        url = receiver.url.replace("127.0.0.1", host)
        result = await webhooks.send(hook(url), delivery(), LIMIT_S)
    assert result.outcome in (Outcome.REFUSED, Outcome.NETWORK)
    assert receiver.connections == 0


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver, sink() as webhooks:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
    assert (proxy.connections, receiver.connections) == (0, 1)


# -- TLS ------------------------------------------------------------------------------------------


async def test_a_certificate_must_be_trusted_and_for_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    for name, trusted, outcome in (
        ("127.0.0.1", True, Outcome.DELIVERED),
        ("other.example", True, Outcome.NETWORK),
        ("127.0.0.1", False, Outcome.NETWORK),
    ):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(tls)
        async with receiving(tls) as receiver:
            with authority.cert_pem.tempfile() as path:
                monkeypatch.setenv("SSL_CERT_FILE", path if trusted else "/dev/null")
                async with sink() as webhooks:
                    result = await webhooks.send(hook(receiver.url), delivery(), LIMIT_S)
        assert result.outcome is outcome, (name, trusted, result)


# -- hostile answers ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(answer=st.binary(max_size=200))
async def test_whatever_a_receiver_writes_is_an_outcome(answer: bytes) -> None:
    async def write(peer: receivers.Peer) -> bool:
        peer.writer.write(answer)
        return False

    result, _ = await tried(write, 1.0)
    assert isinstance(result.outcome, Outcome)
