"""Where Redis is, how one logs in, and what is said when that fails."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from relay.broker import Limits
from relay.broker.redis import RedisBroker
from relay.broker.resp import Address
from relay.errors import Unavailable
from relay.settings import SettingsError
from tests.broker.fake_redis import faking
from tests.contract.harness import CID, Recorder, RedisRig, event, until
from tests.redis_server import free_port, running

pytestmark = pytest.mark.anyio


def test_a_url_says_everything() -> None:
    address = Address.parse("redis://ann:p%40ss@redis.example:7000/3")
    assert address == Address(
        host="redis.example", port=7000, username="ann", password="p@ss", db=3
    )


def test_what_a_url_does_not_say_is_redis_default() -> None:
    assert Address.parse("redis://") == Address(host="localhost", port=6379, db=0)


def test_a_socket_file_is_an_address() -> None:
    address = Address.parse("unix:///run/redis.sock?db=2")
    assert (address.path, address.db) == ("/run/redis.sock", 2)
    assert str(address) == "/run/redis.sock"


@pytest.mark.parametrize(
    "url",
    ["http://redis", "redis", "", "redis+sentinel://a", "rediss://a?ssl_ca_certs=/nowhere",
     "redis://a?db=x", "redis://a:port"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingsError, match="RELAY_REDIS_URL"):
        Address.parse(url)


@pytest.mark.parametrize(
    ("arguments", "mode", "checks_host"),
    [
        ("", ssl.CERT_REQUIRED, True),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE, False),
        ("?ssl_cert_reqs=optional", ssl.CERT_OPTIONAL, False),
        ("?ssl_check_hostname=false", ssl.CERT_REQUIRED, False),
    ],
)
def test_tls_is_as_strict_as_the_url_says(
    arguments: str, mode: ssl.VerifyMode, checks_host: bool
) -> None:
    tls = Address.parse(f"rediss://redis.example{arguments}").tls
    assert (tls.verify_mode, tls.check_hostname) == (mode, checks_host)


def test_a_password_that_breaks_the_url_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        Address.parse("redis://ann:s3cret#x@redis.example")
    assert "s3cret" not in str(refused.value)


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with faking(lambda command: None) as fake:
        port = Address.parse(fake.url).port
        address = Address(host="127.0.0.1", port=port, timeout_s=0.05)
        with pytest.raises(Unavailable, match="does not answer"):
            await address.open("test", [("PING",)])


async def test_what_may_be_refused_comes_before_what_a_connection_needs() -> None:
    """What ends the last connection must, or that could still run what this one loads."""
    async with faking(
        lambda command: b"-NOPERM\r\n" if command[0] == b"MAY" else b"+OK\r\n"
    ) as fake:
        connection = await Address.parse(fake.url).open("test", [("MUST",)], [("MAY",)])
        assert fake.commands == [[b"MAY"], [b"MUST"]]
        assert connection.answers == [b"OK"]
        connection.abort("enough")


async def test_a_server_that_hangs_up_is_told() -> None:
    async with faking(lambda command: fake.writers[0].transport.abort()) as fake:
        with pytest.raises(Unavailable, match="closed the new connection"):
            await Address.parse(fake.url).open("test", [("PING",)])


async def start(url: str, prefix: str = "t:") -> RedisBroker:
    recorder = Recorder()
    broker = RedisBroker(url, prefix, Limits(publish_timeout_s=1.0), "node")
    await broker.start(recorder, recorder.on_live)
    return broker


async def test_a_password_and_a_database_are_used() -> None:
    with running("--requirepass", "secret") as server:
        url = f"redis://:secret@127.0.0.1:{server.port}/5"
        broker = await start(url)
        await broker.publish(event(1))
        with server.client(password="secret", db=5) as client:
            assert client.keys("t:*:m:*")
            names = {each["name"] for each in client.client_list()}
        assert names >= {"relay:node:publish", "relay:node:command", "relay:node:subscribe"}
        await broker.aclose()


async def test_a_user_is_used() -> None:
    with running("--user", "ann", "on", ">secret", "~*", "&*", "+@all") as server:
        broker = await start(f"redis://ann:secret@127.0.0.1:{server.port}")
        await broker.publish(event(1))
        await broker.aclose()


@pytest.mark.parametrize("login", ["", ":wrong@", "ann:wrong@"])
async def test_a_wrong_login_is_told(login: str) -> None:
    with running("--requirepass", "secret") as server:
        with pytest.raises(Unavailable, match="refused") as refused:
            await start(f"redis://{login}127.0.0.1:{server.port}")
        assert "wrong" not in refused.value.message.partition("refused")[0]


async def test_a_socket_file_works(tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")
    with running("--unixsocket", path):
        broker = await start(f"unix://{path}")
        await broker.publish(event(1))
        await broker.aclose()


async def test_tls_works_and_a_certificate_nobody_signed_is_refused(certificate: Path) -> None:
    tls_port = free_port()
    arguments = (
        "--tls-port", str(tls_port), "--tls-cert-file", str(certificate),
        "--tls-key-file", str(certificate.with_name("key.pem")), "--tls-auth-clients", "no",
    )  # fmt: skip
    with running(*arguments):
        broker = await start(f"rediss://localhost:{tls_port}?ssl_ca_certs={certificate}")
        await broker.publish(event(1))
        assert (await broker.positions([CID]))[0].offset == 1
        await broker.aclose()
        with pytest.raises(Unavailable, match="cannot be reached"):
            await start(f"rediss://localhost:{tls_port}")


async def test_something_else_on_the_port_is_told() -> None:
    async with faking(lambda command: b"HTTP/1.1 400 Bad Request\r\n") as fake:
        with pytest.raises(Unavailable):
            await start(fake.url)


async def test_an_old_redis_is_refused() -> None:
    info = b"# Server\r\nredis_version:6.2.14\r\n"
    async with faking(lambda command: b"$%d\r\n%b\r\n" % (len(info), info)) as fake:
        with pytest.raises(SettingsError, match=r"version 6\.2\.14: the relay needs 7\.0"):
            await start(fake.url)


async def test_a_start_that_fails_leaves_no_connection(own_rig: RedisRig) -> None:
    standing = (await own_rig.broker()).node
    with pytest.raises(SettingsError):
        await own_rig.broker(partitions=7)
    with own_rig.server.client() as client:
        await until(
            lambda: {
                each["name"].split(":")[1] for each in client.client_list() if each["name"]
            } == {standing},
            "the other's connections are gone",
        )  # fmt: skip
