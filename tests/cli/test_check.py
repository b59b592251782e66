"""``relay check`` on a real Redis and on what keeps one from being used."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import redis
from moto.server import ThreadedMotoServer

from relay.broker.redis_url import Place
from relay.cli import check, credentials
from tests.cli.conftest import Relay
from tests.redis_shapes import Cluster, Watched

GOOD = {"RELAY_API_KEY": "key", "RELAY_API_SECRET": "s" * 40}


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    _await(url)
    yield url
    server.terminate()
    server.wait(timeout=10)


def _await(url: str) -> None:
    deadline = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < deadline:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise AssertionError("redis-server did not start")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client; the configuration it changes is put back."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
        client.config_set("maxmemory", 0)
        client.replicaof("no", "one")


def test_a_good_redis_is_proven(relay: Relay, redis_url: str, client: redis.Redis) -> None:
    client.config_set("appendonly", "yes")
    answer = relay("check", "--redis-url", redis_url, **GOOD)
    assert answer.exit_code == 0
    lines = answer.output.splitlines()
    assert all(line.startswith("ok:   ") for line in lines)
    for subject in ("credentials", "windows", "Redis 7", "noeviction", "append", "scripts", "lat"):
        assert any(subject in line for line in lines), subject


def test_it_leaves_nothing_behind(relay: Relay, redis_url: str, client: redis.Redis) -> None:
    relay("check", "--redis-url", redis_url, **GOOD)
    assert client.dbsize() == 0


@pytest.fixture
def sqs() -> Iterator[Any]:
    """The owner's client of SQS, on moto's server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = botocore.session.get_session().create_client(
        "sqs", region_name="us-east-1", endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="owner", aws_secret_access_key="owner",
    )  # fmt: skip
    yield client
    client.close()
    server.stop()


@pytest.fixture
def queue(sqs: Any) -> dict[str, str]:
    """A queue that keeps messages for an hour, as settings."""
    attributes = {"MessageRetentionPeriod": "3600"}
    made = sqs.create_queue(QueueName="asked-by-the-command-line", Attributes=attributes)
    return {
        "RELAY_INGEST_SQS_URL": made["QueueUrl"],
        "RELAY_INGEST_SQS_KEY": "AKIA", "RELAY_INGEST_SQS_SECRET": "secret",
    }  # fmt: skip


@pytest.mark.parametrize(("receipts", "is_low"), [("3", True), ("10", False)])
def test_a_queue_that_moves_messages_away_after_a_few_receipts_is_a_warning(
    relay: Relay, sqs: Any, queue: dict[str, str], receipts: str, is_low: bool
) -> None:
    target = "arn:aws:sqs:us-east-1:123456789012:undeliverable"
    sqs.create_queue(QueueName="undeliverable")
    policy = {"deadLetterTargetArn": target, "maxReceiveCount": receipts}
    sqs.set_queue_attributes(
        QueueUrl=queue["RELAY_INGEST_SQS_URL"], Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    answer = relay("check", **GOOD | queue)
    assert answer.exit_code == 0
    said = "warn: queue: its redrive policy moves a message away, unpublished, that was received 3"
    assert (said in answer.output) == ("redrive" in answer.output) == is_low


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "ok:   queue: it keeps messages for 3600 s"),
        ({}, "warn: queue: without RELAY_REDIS_URL a restart forgets which events came"),
        (
            {"RELAY_DEDUPE_WINDOW": "3599", "RELAY_WEBHOOK_FRESHNESS": "60"},
            "fail: the queue of RELAY_INGEST_SQS_URL keeps messages for 3600 s, over RELAY_DEDUPE_",
        ),
        ({"RELAY_INGEST_SQS_API_KEY": "nobody"}, "fail: RELAY_INGEST_SQS_API_KEY='nobody'"),
        ({"RELAY_INGEST_SQS_URL": "http://127.0.0.1:1/1/q"}, "fail: SQS: Could not connect"),
    ],
)
def test_the_queue_is_asked_how_long_it_keeps_messages(
    relay: Relay, queue: dict[str, str], change: dict[str, str], said: str
) -> None:
    answer = relay("check", **GOOD | queue | change)
    assert said in answer.output
    assert answer.exit_code == int(said.startswith("fail"))


def test_with_redis_a_restart_forgets_no_repeats(
    relay: Relay, queue: dict[str, str], redis_url: str, client: redis.Redis
) -> None:
    client.config_set("appendonly", "yes")
    answer = relay("check", "--redis-url", redis_url, **GOOD | queue)
    assert "ok:   queue: it keeps" in answer.output
    assert "warn:" not in answer.output


def test_calls_spread_otherwise_fail(relay: Relay, redis_url: str, client: redis.Redis) -> None:
    answer = relay("check", "--redis-url", redis_url, **GOOD)
    assert "ok:   no relay has used the prefix 'relay:' here before" in answer.output
    client.set("relay:partitions", "256")
    answer = relay("check", "--redis-url", redis_url, **GOOD)
    assert "ok:   256 partitions under 'relay:'" in answer.output
    client.set("relay:partitions", "16")
    answer = relay("check", "--redis-url", redis_url, **GOOD)
    assert answer.exit_code == 1
    assert "fail: the calls under 'relay:' are spread over 16 partitions" in answer.output


def test_eviction_and_a_missing_log_are_warnings(
    relay: Relay, redis_url: str, client: redis.Redis
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    answer = relay("check", RELAY_REDIS_URL=redis_url, **GOOD)
    assert answer.exit_code == 0
    assert "warn: maxmemory-policy allkeys-lru" in answer.output
    assert "warn: appendonly is off" in answer.output


def test_hooks_that_may_be_owed_more_than_redis_holds_are_a_warning(
    relay: Relay, redis_url: str, client: redis.Redis
) -> None:
    bounds = {"RELAY_OUTBOX_BYTES": str(2 << 20), "RELAY_DEAD_LETTER_BYTES": str(1 << 20)}
    for limit, is_short in ((0, False), (1024 << 20, False), (1023 << 20, True)):
        client.config_set("maxmemory", limit)
        answer = relay("check", RELAY_REDIS_URL=redis_url, **GOOD | bounds)
        said = "warn: maxmemory is 1023 MiB, but hooks that are away may be owed 1024 MiB"
        assert (said in answer.output) == ("maxmemory is" in answer.output) == is_short
        assert answer.exit_code == 0


def test_a_replica_fails(relay: Relay, redis_url: str, client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")
    answer = relay("check", RELAY_REDIS_URL=redis_url, **GOOD)
    assert answer.exit_code == 1
    assert "fail: this Redis is a replica" in answer.output


def test_a_user_who_may_not_run_scripts_fails(
    relay: Relay, redis_url: str, client: redis.Redis
) -> None:
    client.acl_setuser("poor", True, passwords=["+p"], commands=["+@all", "-eval"], keys=["*"])
    answer = relay("check", RELAY_REDIS_URL=redis_url.replace("//", "//poor:p@"), **GOOD)
    client.acl_deluser("poor")
    assert answer.exit_code == 1
    assert "fail: Redis: " in answer.output
    assert "eval" in answer.output


def test_nobody_listening_fails_without_showing_the_password(relay: Relay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"redis://:hush@127.0.0.1:{held.getsockname()[1]}"
        answer = relay("check", "--redis-url", url, **GOOD)
    assert answer.exit_code == 1
    assert "fail: Redis: " in answer.output
    assert "refused" in answer.output
    assert "hush" not in answer.output


def test_a_cluster_without_a_node_that_answers_fails(relay: Relay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"redis+cluster://:hush@127.0.0.1:{held.getsockname()[1]}"
        answer = relay("check", "--redis-url", url, **GOOD)
    assert answer.exit_code == 1
    assert "fail: Redis: " in answer.output
    assert "hush" not in answer.output


@pytest.mark.parametrize("url", ["redis://:hu/sh@h", "http://hush", "hush"])
def test_what_is_no_redis_url_fails_without_showing_it(relay: Relay, url: str) -> None:
    answer = relay("check", "--redis-url", url, **GOOD)
    assert answer.exit_code == 1
    assert "fail: RELAY_REDIS_URL must be" in answer.output
    assert "hu" not in answer.output.partition("RELAY_REDIS_URL")[2]


def test_no_redis_is_fine_and_said(relay: Relay) -> None:
    answer = relay("check", **GOOD)
    assert answer.exit_code == 0
    assert "ok:   no RELAY_REDIS_URL" in answer.output


def test_missing_credentials_fail(relay: Relay) -> None:
    answer = relay("check")
    assert answer.exit_code == 1
    assert "fail: RELAY_API_KEY is not set" in answer.output


def test_the_demo_s_secret_fails(relay: Relay) -> None:
    answer = relay("check", RELAY_API_KEY="k", RELAY_API_SECRET=credentials.DEMO.secret)
    assert answer.exit_code == 1
    assert "fail: the demo's secret is accepted" in answer.output


def test_a_short_secret_is_a_warning_also_among_more_keys(relay: Relay) -> None:
    answer = relay("check", RELAY_KEYS="old:short", **GOOD)
    assert answer.exit_code == 0
    assert "warn: a secret is shorter than 32 bytes" in answer.output


def test_windows_that_do_not_fit_fail(relay: Relay) -> None:
    answer = relay("check", "--dedupe-window", "10", **GOOD)
    assert answer.exit_code == 1
    assert answer.output.startswith("fail: RELAY_WEBHOOK_FRESHNESS must not be over")


def test_a_certificate_that_cannot_be_read_fails(relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("not a certificate")
    pem = str(tmp_path / "pem")
    answer = relay("check", "--tls-cert", pem, "--tls-key", pem, **GOOD)
    assert answer.exit_code == 1
    assert "fail: RELAY_TLS_CERT and RELAY_TLS_KEY cannot be used" in answer.output


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        ({"redis_version": "6.2.14"}, "fail", "Redis 6.2.14 is too old"),
        ({"redis_version": "7.0.0"}, "ok", "Redis 7.0.0"),
        ({"redis_version": "10.1"}, "ok", "Redis 10.1"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "ok", "Valkey 8.1.0"),
        ({}, "fail", "Redis 0 is too old"),
    ],
)
def test_the_version_decides(facts: dict[str, str], level: str, text: str) -> None:
    finding = check._version(facts)
    assert finding.level == level
    assert finding.text.startswith(text)


def test_a_cluster_s_node_fails() -> None:
    (finding,) = check._roles({"role": "master", "cluster_enabled": 1}, Place.parse("redis://h"))
    assert finding.level == "fail"


@pytest.mark.parametrize("shape", ["redis_sentinel", "redis_cluster"])
def test_redis_in_another_shape_is_proven_server_by_server(
    shape: str, relay: Relay, request: pytest.FixtureRequest
) -> None:
    server: Watched | Cluster = request.getfixturevalue(shape)
    answer = relay("check", "--redis-url", server.url, **GOOD)
    assert answer.exit_code == 0, answer.output
    assert answer.output.count("noeviction") == (3 if shape == "redis_cluster" else 1)
    assert "latency" in answer.output


def test_replicas_that_are_asked_for_and_missing_fail(relay: Relay, redis_url: str) -> None:
    answer = relay("check", "--redis-url", redis_url, "--redis-replicas", "1", **GOOD)
    assert answer.exit_code == 1
    assert "fail: 0 of the 1 replicas" in answer.output


def test_a_file_of_hooks_is_read(relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "hooks.toml"
    path.write_text('[[hook]]\nid = "a"\nhook_type = "webhook"\nwebhook_url = "http://10.1.2.3/"\n')
    answer = relay("check", "--hooks", str(path), **GOOD)
    assert answer.exit_code == 1
    assert "hook[0].webhook_url: 10.1.2.3 is not a public address" in answer.stdout
    answer = relay("check", "--hooks", str(path), "--hook-allow", "10.0.0.0/8", **GOOD)
    assert answer.exit_code == 0
    assert f"ok:   {path}: 1 hooks\n" in answer.stdout
