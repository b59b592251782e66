"""``relay simulate``: post webhooks that look and are signed as Stream's, to try a relay with.

One kept-alive connection, Stream's four headers, its retries (docs: at most three attempts within
15 s), and the misfortunes of real life at will: duplicates, retries, gzip, a wrong signature.
"""

from __future__ import annotations

import gzip
import os
import time
import uuid
from collections import Counter
from typing import Any, Final
from urllib.parse import SplitResult

import click
import msgspec

from relay import settings, signing, wire
from relay.cli import credentials, options, webhook_bodies
from relay.cli.credentials import Credentials
from relay.cli.follow import printable
from relay.cli.target import URL_DEFAULT, Answer, Target, Unreachable, http_url, own_url
from relay.cli.webhook_bodies import Scene

DOOR: Final = "/webhooks/stream"
ATTEMPT_TIMEOUT_S: Final = 6.0
RETRY_WITHIN_S: Final = 15.0
RETRY_PAUSE_S: Final = 0.5
ATTEMPTS: Final = 3
ATTEMPTS_UNREACHED: Final = 2
"""Without an answer: fewer, unless the time ran out."""
SHOWN: Final = 200
"""Characters of an answer that are printed."""

WRONG_SECRET: Final = "not-the-secret"  # noqa: S105


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asked for."""

    cid: str
    kind: str
    user: str
    custom: dict[str, Any]
    count: int
    rate: float
    repeat: int
    retry: bool
    gzip: bool
    bad_signature: bool
    nanoseconds: bool


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way: what every attempt of it has in common."""

    number: int
    kind: str
    payload: bytes
    headers: dict[str, str]


@click.command()
@click.option(
    "--url",
    type=http_url,
    metavar="URL",
    help=f"The relay, or another door for webhooks. [default: {URL_DEFAULT}{DOOR}]",
)
@click.option(
    "--cid",
    type=options.cid,
    metavar="CID",
    default="default:demo",
    show_default=True,
    help="The call it is about.",
)
@click.option(
    "--event",
    "kind",
    type=click.Choice(webhook_bodies.KINDS),
    metavar="TYPE",
    default="custom",
    show_default=True,
    help=f"Which event: {', '.join(webhook_bodies.KINDS)}.",
)
@click.option(
    "--user",
    type=options.user_id,
    metavar="NAME",
    default="john",
    show_default=True,
    help="Who did it.",
)
@click.option(
    "--animation", default="balloons", show_default=True, help="What a custom event shows."
)
@click.option(
    "--count", type=click.IntRange(1), default=1, show_default=True, help="How many webhooks."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="NUMBER",
    help="Webhooks per second.",
)
@click.option(
    "--repeat",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Post each so many more times: the relay must publish it once.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Number the repeats as further attempts; alone: one second attempt.",
)
@click.option("--gzip", is_flag=True, help="Compress the body, as Stream does when told to.")
@click.option("--bad-signature", is_flag=True, help="Sign with another secret: must be refused.")
@click.option(
    "--nanoseconds/--rfc3339",
    default=False,
    help="How times are written in the body. [default: rfc3339]",
)
def simulate(
    *, url: SplitResult | None, animation: str, repeat: int, retry: bool, **rest: Any
) -> int:
    """Post signed webhooks as Stream does.

    Ends with exit code 1 when the relay did not answer as it should: 2xx, or 401 to a bad
    signature.

    \b
    Example:
      relay simulate
      relay simulate --count 20 --rate 10 --animation confetti --gzip
      relay simulate --event call.session_started --repeat 2 --nanoseconds
    """  # fmt: skip
    plan = Plan(
        custom={"render-animation": animation}, repeat=max(repeat, int(retry)), retry=retry, **rest
    )
    chosen = settings.read(os.environ)
    run = Run(plan, credentials.or_demo(chosen))
    where = (url or own_url(chosen)).geturl().rstrip("/")
    door = url if url and url.path.strip("/") else http_url(where + DOOR)
    with Target(door, timeout_s=ATTEMPT_TIMEOUT_S) as target:
        return run.against(target)


class Run:
    """Posts the webhooks of a plan and counts the answers."""

    def __init__(self, plan: Plan, signer: Credentials) -> None:
        self._plan = plan
        self._signer = signer
        self._session_id = str(uuid.uuid4())
        self._statuses: Counter[int] = Counter()
        self._disappointed = 0

    def against(self, target: Target) -> int:
        """Post everything; return the exit code. Raises ``Unreachable``."""
        began = time.monotonic()
        for number in range(self._plan.count):
            time.sleep(max(0.0, began + number / self._plan.rate - time.monotonic()))
            self._deliver(target, self._webhook(number + 1))
        answers = ", ".join(f"{count} x {code}" for code, count in sorted(self._statuses.items()))
        total = self._statuses.total()
        webhooks, requests = _counted(self._plan.count, "webhook"), _counted(total, "request")
        click.echo(f"{webhooks}, {requests}: {answers}")
        return 1 if self._disappointed else 0

    def _webhook(self, number: int) -> Webhook:
        plan = self._plan
        scene = Scene(
            cid=plan.cid,
            user_id=plan.user,
            now_ns=time.time_ns(),
            session_id=self._session_id,
            custom=plan.custom,
        )
        body = webhook_bodies.body(plan.kind, scene)
        plain = wire.encode(body if plan.nanoseconds else wire.with_rfc3339(body))
        secret = WRONG_SECRET if plan.bad_signature else self._signer.secret
        headers = {
            "X-WEBHOOK-ID": str(uuid.uuid4()),
            "X-API-KEY": self._signer.key,
            "X-SIGNATURE": signing.stream_signature(plain, secret),
        }
        if plan.gzip:
            headers["Content-Encoding"] = "gzip"
        payload = gzip.compress(plain) if plan.gzip else plain
        return Webhook(number=number, kind=plan.kind, payload=payload, headers=headers)

    def _deliver(self, target: Target, webhook: Webhook) -> None:
        """Post a webhook and its repeats."""
        for copy in range(self._plan.repeat + 1):
            answer = self._attempts(target, webhook, copy + 1 if self._plan.retry else 1)
            wanted = answer.status == 401 if self._plan.bad_signature else answer.accepted
            self._disappointed += not wanted

    def _attempts(self, target: Target, webhook: Webhook, attempt: int) -> Answer:
        """Try until the answer is one that Stream takes for final; raises ``Unreachable``."""
        deadline = time.monotonic() + RETRY_WITHIN_S
        made = 1
        while True:
            last = made == ATTEMPTS or time.monotonic() > deadline
            try:
                answer = self._attempt(target, webhook, attempt + made - 1)
                if last or not _is_temporary(answer.status):
                    return answer
            except Unreachable as error:
                if last or (made == ATTEMPTS_UNREACHED and not error.timed_out):
                    raise
                click.echo(f"relay: {error.message}: trying again", err=True)
            time.sleep(RETRY_PAUSE_S * made)
            made += 1

    def _attempt(self, target: Target, webhook: Webhook, attempt: int) -> Answer:
        began = time.perf_counter()
        headers = webhook.headers | {"X-WEBHOOK-ATTEMPT": str(attempt)}
        answer = target.post(target.path, webhook.payload, headers)
        took_ms = (time.perf_counter() - began) * 1000
        self._statuses[answer.status] += 1
        click.echo(
            f"{webhook.number} {webhook.kind}, attempt {attempt}, {len(webhook.payload)} bytes: "
            f"{answer.status} in {took_ms:.1f} ms {printable(answer.text[:SHOWN])}"
        )
        return answer


def _is_temporary(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
