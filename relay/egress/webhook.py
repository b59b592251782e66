"""The webhook sink: one signed POST per event, over connections that are kept alive.

Stream's headers and signature, and those of Standard Webhooks beside them. Both signatures are over
the uncompressed body. What a receiver answers counts as soon as its head is in; of the rest only a
little is read, and not for long.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

from relay import __version__, logs, retry, signing, wire
from relay.egress import guard
from relay.egress.sinks import ANSWER_BYTES, Delivery, Result
from relay.forwarded import Network
from relay.hooks import Hook, Timestamps
from relay.retry import Outcome

log = logs.get(__name__)

KEEP_ALIVE_S: Final = 4.0
"""How long an idle connection is kept: less than most servers do (Node.js and Apache: 5 s)."""
DRAINED_BYTES: Final = 65_536
"""How much of an answer is read to keep the connection; a longer one costs it."""
ANSWER_S: Final = 0.5
"""How long the rest of an answer may take once its head is in, inside the attempt's own limit."""
_GZIP_LEVEL: Final = 6


class WebhookSink:
    """Posts deliveries. Whoever calls ``send`` bounds how many run at once.

    ``clock`` returns nanoseconds since 1970; ``networks`` may be reached although not public.
    """

    def __init__(
        self, *, api_key: str, secret: str, clock: Callable[[], int], networks: Sequence[Network]
    ) -> None:
        self._api_key = api_key
        self._secret = secret
        self._standard_secret = signing.standard_secret(secret)
        self._clock = clock
        self._make_socket = guard.sockets(networks)
        self._tls = ssl.create_default_context()  # SSL_CERT_FILE names an authority of one's own
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._broken = _Lately()

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        """Try once. Never raises but ``CancelledError``; ends within ``limit_s`` seconds."""
        began = time.perf_counter()
        trace = _Trace()
        try:
            async with asyncio.timeout(limit_s):
                result = await self._post(hook, delivery, trace)
        except TimeoutError:
            why = f"no answer within {limit_s:.3g} s"
            result = trace.head or _failed(Outcome.TIMEOUT, why)
        except aiohttp.ClientConnectorError as error:
            outcome = Outcome.REFUSED if guard.is_closed(error) else Outcome.NETWORK
            result = _failed(outcome, str(error))
        except (aiohttp.ClientError, OSError) as error:
            result = _failed(Outcome.NETWORK, str(error) or type(error).__name__)
        except Exception as error:
            log.error("delivery failed unexpectedly", hook=hook.id, exc_info=error)
            result = _failed(Outcome.NETWORK, f"the relay failed: {type(error).__name__}")
        return msgspec.structs.replace(result, latency_s=time.perf_counter() - began)

    async def aclose(self) -> None:
        """Let go of every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _post(self, hook: Hook, delivery: Delivery, trace: _Trace) -> Result:
        """Post over a kept connection; over a new one when a kept one has just failed.

        A receiver may close an idle connection just as a request is on its way. That looks like one
        that breaks off, so it costs an attempt; the next attempt must not meet with it again.
        """
        url = _url(hook.webhook_url)
        body, headers = self._message(hook, delivery)
        kept = delivery.attempt == 1 or not self._broken.has(url.raw_authority)
        try:
            return await self._ask(self._session(kept), url, body, headers, trace)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if trace.reused:
                self._broken.note(url.raw_authority)
            raise

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        body: bytes,
        headers: dict[str, str],
        trace: _Trace,
    ) -> Result:
        async with session.post(
            url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=trace
        ) as response:
            trace.head = Result(
                outcome=retry.outcome_of(response.status),
                latency_s=0.0,
                status=response.status,
                retry_after_s=retry.read_retry_after(
                    response.headers.get("Retry-After"), self._clock() / 1e9
                ),
            )
            return msgspec.structs.replace(trace.head, answer=await _beginning(response))

    def _message(self, hook: Hook, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        """Return the body as it is sent, and the headers."""
        body = delivery.body
        if hook.timestamps is Timestamps.NANOSECONDS:
            body = wire.nanosecond_times(body)
        headers = self._headers(delivery, body)
        if not hook.gzip:
            return body, headers
        return gzip.compress(body, _GZIP_LEVEL, mtime=0), {**headers, "Content-Encoding": "gzip"}

    def _headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        name, now_s = delivery.delivery_id, str(self._clock() // 1_000_000_000)
        return {
            "Content-Type": "application/json",
            "X-WEBHOOK-ID": name,
            "X-WEBHOOK-ATTEMPT": str(delivery.attempt),
            "X-API-KEY": self._api_key,
            "X-SIGNATURE": signing.stream_signature(body, self._secret),
            "webhook-id": name,
            "webhook-timestamp": now_s,
            "webhook-signature": signing.standard_signature(
                name, now_s, body, self._standard_secret
            ),
        }

    def _session(self, kept: bool) -> aiohttp.ClientSession:
        """Return the session whose connections are ``kept``, or the one that makes new ones."""
        if kept not in self._sessions:
            self._sessions[kept] = self._open(kept)
        return self._sessions[kept]

    def _open(self, kept: bool) -> aiohttp.ClientSession:
        # aiohttp resolves names with aiodns where that is installed: a name server that hangs then
        # holds no thread that others wait for.
        connector = aiohttp.TCPConnector(
            limit=0,  # a receiver that is slow must not keep the others' connections from them
            keepalive_timeout=KEEP_ALIVE_S if kept else None,
            force_close=not kept,
            ssl=self._tls,
            socket_factory=self._make_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # send() has the limit
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": f"relay/{__version__}", "Accept-Encoding": "identity"},
            trace_configs=[_watched()],
        )


class _Lately:
    """Receivers of which a kept connection broke in the time that a delivery's attempts take."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note(self, receiver: str) -> None:
        """Note that it happened now."""
        now = asyncio.get_running_loop().time()
        self._until.pop(receiver, None)
        self._until[receiver] = now + retry.BUDGET_S
        while next(iter(self._until.values())) <= now:
            del self._until[next(iter(self._until))]

    def has(self, receiver: str) -> bool:
        """Tell whether it happened lately."""
        until = self._until.get(receiver)
        return until is not None and asyncio.get_running_loop().time() < until


class _Trace:
    """What is known of one request: whether its connection was a kept one, the answer's head."""

    __slots__ = ("head", "reused")

    def __init__(self) -> None:
        self.reused = False
        self.head: Result | None = None


def _watched() -> aiohttp.TraceConfig:
    """Return a trace that notes in each request's ``_Trace`` that its connection was a kept one."""

    def context(trace_request_ctx: Any) -> Any:
        return trace_request_ctx

    async def on_reuse(_: aiohttp.ClientSession, trace: Any, __: object) -> None:
        trace.reused = True

    config = aiohttp.TraceConfig(trace_config_ctx_factory=context)  # type: ignore[arg-type]
    config.on_connection_reuseconn.append(on_reuse)
    return config


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Return the first bytes of an answer; a long or slow one ends with its connection."""
    kept, read = bytearray(), 0
    try:
        async with asyncio.timeout(ANSWER_S):
            while read <= DRAINED_BYTES and (chunk := await response.content.readany()):
                read += len(chunk)
                kept += chunk[: ANSWER_BYTES - len(kept)]
    except (TimeoutError, aiohttp.ClientError, OSError):
        read = DRAINED_BYTES + 1
    if read > DRAINED_BYTES:
        response.close()
    return bytes(kept)


@lru_cache(maxsize=4096)
def _url(text: str) -> URL:
    """Return a hook's URL as it was written: nothing in it is quoted again."""
    return URL(text, encoded=True)


def _failed(outcome: Outcome, why: str) -> Result:
    return Result(outcome=outcome, latency_s=0.0, answer=why.encode()[:ANSWER_BYTES])
