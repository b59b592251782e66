"""A user that may do no more than a relay needs, and TLS, in every shape of Redis.

The rights are those of docs/operations.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.broker import Broker
from relay.broker.redis import RedisBroker, RedisInbox, RedisStore
from relay.users import Profile
from tests.contract.harness import CID, Recorder, RedisRig, closing, event, until
from tests.redis_server import RedisServer, running
from tests.redis_shapes import Cluster, Watched

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def rights() -> list[str]:
    """Return the rights that the page gives to the user ``relay``."""
    [line] = re.findall(r"^ACL SETUSER relay on >secret (.+)$", PAGE.read_text(), re.MULTILINE)
    return str(line).split()


async def works(url: str, server: RedisServer | Watched | Cluster) -> None:
    """Do all that a relay does with Redis, under the prefix of the page."""
    recorder = Recorder()
    async with closing(RedisRig(server)) as rig:
        rig.prefix = "relay:"
        broker: RedisBroker = await rig.broker(recorder=recorder, url=url)
        await broker.subscribe(CID)
        await broker.publish(event(1))
        await broker.publish(event(2, volatile=True, identity=None))
        await until(lambda: recorder.contents() == [1, 2], "events arrive")
        await check_reading(broker)
        box = RedisInbox(broker, wait_s=0.01)
        assert await box.take() == []
        await box.settle(["1-1"])
        await box.aclose()
        await RedisStore(broker).save_user("ann", Profile(name="Ann"), 1)
        await broker._ping(CID)
        await broker._publish_canary(broker.keyspace.canary(broker.node, 0), b"1")
        assert await broker._memory_policy(0) == "noeviction"


async def check_reading(broker: Broker) -> None:
    assert (await broker.history(CID, 0)).top.offset == 1
    assert (await broker.positions([CID]))[0].offset == 1
    assert broker.node in await broker.nodes()
    assert await broker.rosters(CID) == {}


async def test_a_user_with_just_these_rights_is_enough() -> None:
    with running("--user", "relay", "on", ">secret", *rights()) as server:
        await works(server.url.replace("//", "//relay:secret@"), server)


async def test_in_a_cluster_too() -> None:
    with Cluster("--user", "relay", "on", ">secret", *rights()) as cluster:
        await works(cluster.url.replace("//", "//relay:secret@"), cluster)


async def test_behind_sentinel_too() -> None:
    with Watched("--user", "relay", "on", ">secret", *rights()) as watched:
        await works(watched.url.replace("//", "//relay:secret@"), watched)


async def test_a_cluster_speaks_tls(certificate: Path) -> None:
    with Cluster(certificate=certificate) as cluster:
        await works(f"{cluster.tls_url}?ssl_ca_certs={certificate}", cluster)
