"""``relay check``: prove the settings and the connection to Redis before a relay depends on them.

One line per finding. ``fail`` is what a relay cannot run with, ``warn`` what it would regret.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import click
import redis

from relay import forwarded, ingress, settings
from relay.api import HooksFile
from relay.broker import clients
from relay.broker.keyspace import PARTITIONS, Keyspace
from relay.broker.redis_url import Place, Shape
from relay.cli import credentials, options
from relay.egress import has_aws
from relay.errors import Unavailable
from relay.hooks import Rules
from relay.settings import Settings, SettingsError

TIMEOUT_S: Final = 5.0
PINGS: Final = 20
SLOW_MS: Final = 20.0
CLOCK_SKEW_S: Final = 5.0
SECRET_BYTES: Final = 32
"""HS256 is no stronger than its key (RFC 7518, section 3.2)."""

OLDEST: Final = (7, 0)
"""Redis before it has no sharded pub/sub."""


class Finding(NamedTuple):
    """What was found: ``ok``, ``warn`` or ``fail``, and in which words."""

    level: str
    text: str


@click.command()
@options.settings_flags()
def check(**flags: Any) -> int:
    """Prove the settings and the Redis of 'relay serve'.

    One line per finding: ok, warn or fail. Exit code 1 when something fails.

    \b
    Example:
      relay check --redis-url redis://localhost:6379/0
    """
    failed = False
    for finding in _findings(flags):
        click.echo(f"{finding.level + ':':<5} {finding.text}")
        failed = failed or finding.level == "fail"
    return 1 if failed else 0


def _findings(flags: dict[str, Any]) -> Iterator[Finding]:
    try:
        chosen = settings.read(os.environ, flags)
    except SettingsError as error:
        yield Finding("fail", str(error))
        return
    yield _credentials(chosen)
    yield _windows(chosen)
    if chosen.tls_cert:
        yield _certificate(chosen)
    if chosen.hooks:
        yield _hooks(chosen)
    if chosen.ingest_sqs_url:
        yield from _queue(chosen)
    if chosen.redis_url:
        yield from _redis(chosen)
    else:
        yield Finding("ok", "no RELAY_REDIS_URL: one process, its history ends with it")


def _hooks(chosen: Settings) -> Finding:
    rules = Rules(time.time_ns(), str, forwarded.read_networks(chosen.hook_allow), has_aws())
    try:
        count = HooksFile(chosen.hooks, rules).count
    except SettingsError as error:
        return Finding("fail", str(error))
    return Finding("ok", f"{chosen.hooks}: {count} hooks")


def _queue(chosen: Settings) -> Iterator[Finding]:
    try:
        kept_s, problem = asyncio.run(_asked(chosen))
    except (SettingsError, Unavailable) as error:
        yield Finding("fail", str(error))
        return
    yield Finding("ok", f"queue: it keeps messages for {kept_s:g} s, repeats are known as long")
    if problem is not None:
        yield Finding("warn", f"queue: {problem}")
    if not chosen.redis_url:
        yield Finding(
            "warn",
            "queue: without RELAY_REDIS_URL a restart forgets which events came: copies that are "
            "still in the queue then are published again",
        )


async def _asked(chosen: Settings) -> tuple[float, str | None]:
    """Return for how many seconds the queue keeps a message, and what it may do in an outage."""
    sources = ingress.load_sources(
        chosen.sources,
        chosen.accepted_keys,
        max_bytes=chosen.webhook_max_bytes,
        freshness_s=chosen.webhook_freshness,
    )
    api_key = chosen.ingest_sqs_api_key or chosen.api_key
    ingress.queue_reader(sources, api_key, chosen.dedupe_window)
    queue = ingress.open_queue(chosen)
    try:
        kept_s = await ingress.check_retention(queue, chosen.dedupe_window)
        return kept_s, await ingress.redrive_warning(queue)
    finally:
        await queue.aclose()


def _credentials(chosen: Settings) -> Finding:
    try:
        settings.check_serve(chosen)
    except SettingsError as error:
        return Finding("fail", str(error))
    secrets = [secret for of_key in chosen.accepted_keys.values() for secret in of_key]
    if credentials.DEMO.secret in secrets:
        return Finding("fail", "the demo's secret is accepted: it is public, choose another")
    if min(len(secret.encode()) for secret in secrets) < SECRET_BYTES:
        return Finding(
            "warn", f"a secret is shorter than {SECRET_BYTES} bytes: openssl rand -hex 32"
        )
    return Finding("ok", f"credentials: {len(chosen.accepted_keys)} API key(s), long secrets")


def _windows(chosen: Settings) -> Finding:
    freshness, dedupe = (options.shown(w) for w in (chosen.webhook_freshness, chosen.dedupe_window))
    return Finding("ok", f"windows: webhooks up to {freshness} s old, repeats known for {dedupe} s")


def _certificate(chosen: Settings) -> Finding:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            chosen.tls_cert, chosen.tls_key
        )
    except (ssl.SSLError, OSError) as error:
        return Finding("fail", f"RELAY_TLS_CERT and RELAY_TLS_KEY cannot be used: {error}")
    return Finding("ok", "TLS: the certificate and its key fit")


def _redis(chosen: Settings) -> Iterator[Finding]:
    """Ask Redis everything; what it does not answer ends the questions."""
    try:
        place = Place.parse(chosen.redis_url)
    except SettingsError as error:
        yield Finding("fail", str(error))
        return
    try:
        with clients.asking():
            client = clients.blocking(
                chosen.redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
            try:
                yield from _answers(client, place, chosen)
            finally:
                clients.close(client)
    except Unavailable as error:
        yield Finding("fail", error.message)


def _answers(client: redis.Redis, place: Place, chosen: Settings) -> Iterator[Finding]:
    limits = []
    for name, server in _servers(client, place):
        facts: dict[str, Any] = server.info()
        limits.append(int(facts.get("maxmemory", 0)))
        yield _version(facts, name)
        yield from _roles(facts, place)
        yield from _memory(facts)
        yield from _replicas(facts, chosen)
    yield from _room(limits, chosen)
    yield _partitions(client, chosen)
    yield _script(client, chosen)
    yield _latency(client)


def _servers(client: Any, place: Place) -> Iterator[tuple[str, redis.Redis]]:
    """Yield every server that would keep events, with a name where there are several."""
    if place.shape is not Shape.CLUSTER:
        yield ("" if place.shape is Shape.SINGLE else str(place)), client
        return
    for node in sorted(client.get_primaries(), key=lambda node: str(node.name)):
        yield node.name, client.get_redis_connection(node)


def _version(facts: dict[str, Any], where: str = "") -> Finding:
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = str(facts.get("valkey_version", facts.get("redis_version", "0")))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return Finding("fail", f"{name} {version} is too old: 7.0 or newer is needed")
    return Finding("ok", f"{name} {version}{where and f' at {where}'}")


def _roles(facts: dict[str, Any], place: Place) -> Iterator[Finding]:
    if facts.get("role") != "master":
        yield Finding("fail", "this Redis is a replica: RELAY_REDIS_URL must name the primary")
    if facts.get("cluster_enabled") and place.shape is not Shape.CLUSTER:
        yield Finding("fail", "this Redis is a node of a Cluster: write redis+cluster://…")


def _replicas(facts: dict[str, Any], chosen: Settings) -> Iterator[Finding]:
    connected = int(facts.get("connected_slaves", 0))
    if connected < chosen.redis_replicas:
        yield Finding(
            "fail",
            f"{connected} of the {chosen.redis_replicas} replicas are connected that "
            "RELAY_REDIS_REPLICAS asks for: every event would be answered 503",
        )


def _memory(facts: dict[str, Any]) -> Iterator[Finding]:
    policy = facts.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        yield Finding("ok", "maxmemory-policy noeviction")
    else:
        yield Finding(
            "warn",
            f"maxmemory-policy {policy}: Redis may drop history and positions when memory is "
            "short: set noeviction",
        )
    if facts.get("aof_enabled"):
        yield Finding("ok", "appendonly: what was accepted is on disk")
    else:
        yield Finding(
            "warn", "appendonly is off: what Redis accepted since its last snapshot dies with it"
        )


def _room(limits: list[int], chosen: Settings) -> Iterator[Finding]:
    """Compare what may be owed to hooks with the servers' limits, in bytes; 0 is no limit."""
    bounds = chosen.outbox_bytes + 2 * chosen.dead_letter_bytes
    if all(limits) and PARTITIONS * bounds > sum(limits):
        yield Finding(
            "warn",
            f"maxmemory is {sum(limits) >> 20} MiB, but hooks that are away may be owed "
            f"{PARTITIONS * bounds >> 20} MiB, {PARTITIONS} times RELAY_OUTBOX_BYTES + 2 times "
            "RELAY_DEAD_LETTER_BYTES: lower these, or Redis may fill up and take no events",
        )


def _partitions(client: redis.Redis, chosen: Settings) -> Finding:
    keys = Keyspace(chosen.redis_prefix)
    written = client.get(keys.partitions_key)
    if written is None:
        return Finding("ok", f"no relay has used the prefix {chosen.redis_prefix!r} here before")
    before = written.decode() if isinstance(written, bytes) else written
    if before != str(keys.partitions):
        return Finding(
            "fail",
            f"the calls under {chosen.redis_prefix!r} are spread over {before} partitions, "
            f"this relay counts {keys.partitions}: set another RELAY_REDIS_PREFIX",
        )
    return Finding("ok", f"{keys.partitions} partitions under {chosen.redis_prefix!r}")


def _script(client: redis.Redis, chosen: Settings) -> Finding:
    """Run a script that does what the publish step needs, and compare the clocks."""
    key = f"{chosen.redis_prefix}check:{os.getpid()}"
    seconds, replication = client.eval(_PROOF, 1, key)  # one key: a Cluster knows where
    skew = abs(time.time() - int(seconds))
    if "master_replid" not in replication.decode():
        return Finding("fail", "INFO replication in a script does not tell the replication id")
    if skew > CLOCK_SKEW_S:
        return Finding("warn", f"the clocks of Redis and this machine differ by {skew:.0f} s")
    return Finding("ok", f"scripts may write under {chosen.redis_prefix!r}, the clocks agree")


_PROOF: Final = """\
redis.call('XADD', KEYS[1], '1-1', 'proof', '1')
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', KEYS[1], '')
return {redis.call('TIME')[1], redis.call('INFO', 'replication')}
"""


def _latency(client: redis.Redis) -> Finding:
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ping()
        times.append((time.perf_counter() - began) * 1000)
    median, worst = statistics.median(times), max(times)
    level = "warn" if median > SLOW_MS else "ok"
    return Finding(level, f"latency: {median:.2f} ms in the middle, {worst:.2f} ms at worst")
