"""The broker's background work: what nobody foresaw is logged, and the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from relay import metrics
from relay.broker import Limits, Roster
from relay.broker.canary import EVERY_S, Canaries
from relay.broker.cluster_links import ClusterLinks
from relay.broker.cluster_map import SETTLED_S, ClusterMap
from relay.broker.keeper import Keeper
from relay.broker.link import Elsewhere, Link
from relay.broker.redis import RedisBroker
from relay.broker.requests import Commands
from relay.broker.resp import Address, Command, Connection
from relay.broker.sentinels import Sentinels
from relay.broker.subscriber import Subscriber
from tests.broker.fake_redis import faking
from tests.broker.test_subscriber import CHANNEL, KEYS, confirm, push
from tests.contract.harness import CID, Recorder, RedisRig, until
from tests.gateway.fakes import FAKE_TIME

pytestmark = pytest.mark.anyio

AGAIN = "background work failed and begins again"


class Bugs:
    """Raises what nobody foresaw, as often as it is told to."""

    def __init__(self, count: int = 1) -> None:
        self.left = count

    def strike(self) -> None:
        if self.left:
            self.left -= 1
            raise ValueError("a bug")


# -- connections ----------------------------------------------------------------------------------


class Owner:
    """Uses a connection; with bugs when it gets one."""

    def __init__(self, bugs: Bugs) -> None:
        self.opened = self.closed = 0
        self._bugs = bugs

    def preamble(self) -> tuple[Sequence[Command], Sequence[Command]]:
        return [], []

    def on_open(self, connection: Connection) -> None:
        self.opened += 1
        self._bugs.strike()

    def on_reply(self, reply: Any) -> None:
        pass

    def on_writable(self) -> None:
        pass

    def on_closed(self) -> None:
        self.closed += 1

    def on_unreachable(self) -> None:
        pass


class BuggyRoute:
    """Leads to an address, unless a bug strikes."""

    def __init__(self, address: Address, bugs: Bugs) -> None:
        self._address = address
        self._bugs = bugs

    async def open(
        self, name: str, commands: Sequence[Command] = (), optional: Sequence[Command] = ()
    ) -> Connection:
        self._bugs.strike()
        return await self._address.open(name, commands, optional)


async def test_a_connection_is_made_whatever_went_wrong_on_the_way() -> None:
    async with faking(lambda command: None) as fake:
        bugs = Bugs(2)
        owner = Owner(Bugs(0))
        route = BuggyRoute(Address.parse(fake.url), bugs)
        keeper = Keeper(route, "test:keeper", owner, lambda: None)
        keeper.start_soon()
        await until(lambda: keeper.connection, "it is connected")
        bugs.left = 2
        keeper.drop("a test")
        await until(lambda: owner.opened == 2 and keeper.connection, "it is connected again")
        await keeper.aclose()


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_connection_that_could_not_be_put_to_use_is_replaced(is_first: bool) -> None:
    async with faking(lambda command: None) as fake:
        bugs = Bugs(int(is_first))
        owner = Owner(bugs)
        keeper = Keeper(Address.parse(fake.url), "test:keeper", owner, lambda: None)
        if is_first:
            keeper.start_soon()
        else:
            await keeper.start()
            bugs.left = 1
            keeper.drop("a test")
        await until(lambda: owner.opened == 2 + (not is_first), "it is opened again")
        assert keeper.connection is not None
        assert owner.opened == owner.closed + 1, "one stands"
        await keeper.aclose()


class BuggyRecorder(Recorder):
    """Fails once when it is told of an interruption."""

    def __init__(self) -> None:
        super().__init__()
        self.bugs = Bugs()

    def on_interrupted(self, cids: Collection[str]) -> None:
        self.bugs.strike()
        super().on_interrupted(cids)


async def test_what_may_have_been_missed_is_told_in_the_end() -> None:
    recorder = BuggyRecorder()
    async with faking(confirm) as fake:
        subscriber = Subscriber(
            Address.parse(fake.url), "test:subscribe", keyspace=KEYS, node="here",
            timeout_s=2.0, changed=lambda: None,
        )  # fmt: skip
        subscriber.listen(recorder, {}, lambda cid, token: None)
        await subscriber.start()
        await subscriber.subscribe(CID)
        fake.writers[0].write(push(b"sunsubscribe", CHANNEL))
        await until(lambda: recorder.interruptions == [{CID}], "it is told")
        await subscriber.aclose()


# -- canaries -------------------------------------------------------------------------------------


class Subscribed:
    """Subscriptions that have a bug once."""

    def __init__(self) -> None:
        self.cids: list[str] = []
        self.bugs = Bugs()

    def stands(self, cid: str) -> bool:
        return True

    async def subscribe(self, cid: str) -> None:
        self.bugs.strike()
        self.cids.append(cid)

    def unsubscribe(self, cid: str) -> None:
        self.cids.remove(cid)

    def drop(self, cid: str, why: str) -> None:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("anyio_backend", [FAKE_TIME])
async def test_canaries_are_sent_whatever_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    subscriptions, choosing, sending = Subscribed(), Bugs(0), Bugs()
    sent: list[str] = []

    def cids() -> list[str]:
        choosing.strike()
        return ["canary"]

    async def publish(cid: str, token: bytes) -> None:
        sending.strike()
        sent.append(cid)
        canaries.on_canary(cid, token)

    async def ask(cid: str) -> None:
        pass

    canaries = Canaries(publish, ask, subscriptions, cids)
    canaries.start()
    await asyncio.sleep(5)
    assert subscriptions.cids == ["canary"]
    choosing.left = 2
    sent.clear()
    await asyncio.sleep(10)
    assert len(sent) >= 10 / EVERY_S - 3
    assert capsys.readouterr().out.count(AGAIN) == 3
    await canaries.aclose()


# -- a Cluster, sentinels -------------------------------------------------------------------------


def slots(address: Address, last: int = 16383) -> bytes:
    """Answer that a server serves everything, or everything up to a slot."""
    host = address.host.encode()
    return b"*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n$%d\r\n%b\r\n:%d\r\n" % (
        last, len(host), host, address.port,
    )  # fmt: skip


class Follower:
    """Follows a map; fails once."""

    is_settled = False

    def __init__(self) -> None:
        self.maps = 0
        self.bugs = Bugs(0)

    def on_map(self) -> None:
        self.bugs.strike()
        self.maps += 1


async def test_the_map_of_a_cluster_is_read_whatever_its_followers_do() -> None:
    async with faking(lambda command: slots(address)) as fake:
        address = Address.parse(fake.url)
        cluster, follower = ClusterMap([address]), Follower()
        await cluster.start()
        cluster.follow(follower)
        follower.bugs.left = 2
        await until(lambda: follower.maps >= 2, "it is read again")
        await cluster.aclose()


async def test_a_map_with_holes_is_read_again_soon() -> None:
    holes = iter([b"*0\r\n", None])

    def answer(command: list[bytes]) -> bytes:
        return next(holes, slots(address)) or slots(address, 16382)

    async with faking(answer) as fake:
        address = Address.parse(fake.url)
        cluster = ClusterMap([address])
        await cluster.start()
        assert cluster.primaries == ()
        async with asyncio.timeout(SETTLED_S / 10):
            await until(lambda: cluster.owner(16383), "it is whole")
        assert cluster.reads == 3
        await cluster.aclose()


def answers(address: Callable[[], Address], first: bytes) -> Callable[[list[bytes]], bytes]:
    """Answer as a Cluster whose server says ``first`` to the first request."""
    said: Iterator[bytes] = iter([first])

    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"CLUSTER":
            return slots(address())
        return next(said, b"+%b\r\n" % command[-1])

    return answer


async def test_a_detour_ends_although_a_server_says_something_strange() -> None:
    async with faking(answers(lambda: address, b"-MOVED nowhere\r\n")) as fake:
        address = Address.parse(fake.url)
        cluster = ClusterMap([address])

        def link(where: Address, elsewhere: Elsewhere) -> Link:
            return Link(
                where, "test:link", scripts=[], away_after_s=5.0, changed=lambda: None,
                elsewhere=elsewhere,
            )  # fmt: skip

        links = ClusterLinks(cluster, link)
        commands = Commands(links, timeout_s=5.0, bound=100, routed=True)
        await cluster.start()
        await commands.start()
        assert await commands.request("GET", "a") == b"a"
        assert await commands.request("GET", "a") == b"a"
        assert links._detours == {}
        await commands.aclose()
        await cluster.aclose()


async def test_a_sentinel_that_answers_nonsense_is_passed_over() -> None:
    def sane(command: list[bytes]) -> bytes:
        if command[0] == b"SENTINEL":
            return b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n"
        return push(b"subscribe", b"+switch-master")

    def mad(command: list[bytes]) -> bytes:
        return b"*1\r\n:1\r\n" if command[0] == b"SENTINEL" else sane(command)

    async with faking(mad) as first, faking(sane) as second:
        addresses = [Address.parse(fake.url) for fake in (first, second)]
        sentinels = Sentinels(addresses, "main", Address())
        sentinels.start()
        await until(lambda: [b"SUBSCRIBE", b"+switch-master"] in second.commands, "the next one")
        await sentinels.aclose()


# -- the broker itself ----------------------------------------------------------------------------


class BuggyBroker(RedisBroker):
    """Fails a few times when it says that it is alive, or looks at how Redis is set up."""

    beats = 0
    bugs = Bugs(0)

    async def _beat(self) -> bool:
        self.bugs.strike()
        self.beats += 1
        return await super()._beat()


async def test_a_process_goes_on_saying_that_it_lives(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = BuggyBroker(rig.server.url, rig.prefix, Limits(), uuid4().hex, heartbeat_s=0.02)
    await broker.start(recorder, recorder.on_live)
    rig.started.append(broker)
    before = broker.beats
    broker.bugs.left = 2
    await until(lambda: not broker.bugs.left and broker.beats > before + 2, "more beats")


async def test_what_redis_does_not_tell_is_a_warning_and_no_alarm() -> None:
    async with faking(lambda command: b"$13\r\nused_memory:7\r\n") as fake:
        broker = RedisBroker(fake.url, "p:", Limits(), "node")
        await broker.commands.start()
        policy = await broker._memory_policy(0)
        await broker.commands.aclose()
    assert policy is None
    broker._warn({policy})
    [warning] = broker.health().warnings
    assert "does not tell maxmemory-policy" in warning
    assert metrics.REDIS_EVICTS._value.get() == 0
    broker._warn({None, "allkeys-lru"})
    assert len(broker.health().warnings) == 2
    broker._warn(set())
    assert broker.health().warnings == ()


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"count":"many"}'])
async def test_a_roster_of_another_version_is_left_out(rig: RedisRig, text: bytes) -> None:
    broker, other = await rig.broker(), await rig.broker()
    await broker.set_roster(CID, Roster(2))
    with rig.server.client() as client:
        client.hset(broker.keyspace.roster(CID), other.node, text.decode())
    assert await broker.rosters(CID) == {broker.node: Roster(2)}
