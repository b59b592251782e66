"""The FIFO of requests: order, what is sent again, what is not, and for how long one waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from relay.broker.link import Link, Replicas
from relay.broker.requests import Commands
from relay.broker.resp import Address
from relay.broker.scripts import PUBLISH
from relay.errors import Unavailable
from tests.broker.fake_redis import Answer, FakeRedis, faking
from tests.contract.harness import until

pytestmark = pytest.mark.anyio

OK = b"+OK\r\n"


@asynccontextmanager
async def linked(
    answer: Answer,
    *,
    timeout_s: float = 5.0,
    bound: int = 1000,
    replicas: Replicas | None = None,
) -> AsyncIterator[tuple[Commands, FakeRedis]]:
    async with faking(answer) as fake:
        link = Link(
            Address.parse(fake.url),
            "test:link",
            scripts=[PUBLISH],
            away_after_s=timeout_s,
            changed=lambda: None,
            replicas=replicas,
        )
        commands = Commands(link, timeout_s=timeout_s, bound=bound)
        await commands.start()
        try:
            yield commands, fake
        finally:
            await commands.aclose()


def of(commands: Commands) -> Link:
    link = commands._carrier
    assert isinstance(link, Link)
    return link


def echo(command: list[bytes]) -> bytes:
    return b"+%b\r\n" % command[-1]


def asked(fake: FakeRedis) -> list[bytes]:
    return [command[-1] for command in fake.commands]


def ask(link: Commands, *names: str, repeatable: bool = True) -> list[asyncio.Task[object]]:
    return [
        asyncio.create_task(link.request("ECHO", name, repeatable=repeatable)) for name in names
    ]


def first_time(reply: bytes) -> Callable[[list[bytes]], bytes]:
    """Answer the first command with ``reply``, as ``echo`` from then on."""
    replies = iter([reply])
    return lambda command: next(replies, echo(command))


async def test_each_request_gets_its_own_answer() -> None:
    async with linked(echo) as (link, _):
        names = [str(n) for n in range(200)]
        assert await asyncio.gather(*ask(link, *names)) == [name.encode() for name in names]


async def test_requests_of_one_turn_leave_in_one_write() -> None:
    async with linked(echo) as (link, _):
        writes: list[bytes] = []
        connection = of(link)._keeper.connection
        assert connection is not None
        write = connection.write
        connection.write = lambda data: (writes.append(data), write(data))[1]  # type: ignore[method-assign]
        await asyncio.gather(*ask(link, *"abcdef"))
        assert len(writes) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        b"-NOSCRIPT No matching script\r\n",
        b"-READONLY You can't write against a read only replica\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-BUSY Redis is busy running a script\r\n",
    ],
)
async def test_what_cannot_be_done_now_is_sent_again_from_the_head(refusal: bytes) -> None:
    async with linked(first_time(refusal)) as (link, fake):
        assert await asyncio.gather(*ask(link, "a", "b", "c")) == [b"a", b"b", b"c"]
        assert asked(fake)[-3:] == [b"a", b"b", b"c"]
        assert len(fake.writers) == 2


async def test_what_was_refused_for_now_did_not_happen_and_may_be_sent_again() -> None:
    async with linked(first_time(b"-LOADING\r\n")) as (link, _):
        assert await asyncio.gather(*ask(link, "a", repeatable=False)) == [b"a"]


async def test_what_may_have_happened_is_not_sent_again_unless_it_is_repeatable() -> None:
    async with linked(lambda command: None) as (link, fake):
        [once] = ask(link, "once", repeatable=False)
        [again] = ask(link, "again")
        await until(lambda: len(fake.commands) == 2, "both have arrived")
        fake.answer = echo
        fake.writers[0].transport.abort()
        with pytest.raises(Unavailable, match="the outcome is unknown"):
            await once
        assert await again == b"again"
        assert asked(fake) == [b"once", b"again", b"again"]


async def test_a_refusal_is_answered_and_the_rest_goes_on() -> None:
    async with linked(first_time(b"-ERR no\r\n")) as (link, fake):
        refused, answered = ask(link, "a", "b")
        with pytest.raises(Unavailable, match="Redis refused the command"):
            await refused
        assert await answered == b"b"
        assert len(fake.writers) == 1


async def test_a_full_redis_is_named() -> None:
    async with linked(first_time(b"-OOM command not allowed\r\n")) as (link, _):
        with pytest.raises(Unavailable, match="out of memory"):
            await link.request("ECHO", "a")


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (b"-NOREPLICAS Not enough good replicas to write.\r\n", "too few replicas"),
        (b"-MISCONF Errors writing to the AOF file\r\n", "cannot write to its disk"),
        (b"-NOPERM this user has no permissions\r\n", "the right to it"),
    ],
)
async def test_why_redis_refuses_is_named(refusal: bytes, why: str) -> None:
    async with linked(first_time(refusal)) as (link, _):
        with pytest.raises(Unavailable, match=why) as refused:
            await link.request("ECHO", "a")
        assert refused.value.reason == "redis_refused"


async def test_why_redis_runs_nothing_for_so_long_is_named() -> None:
    def read_only(command: list[bytes]) -> bytes | None:
        return b"-READONLY no\r\n" if command[0] == b"ECHO" else echo(command)

    async with linked(read_only, timeout_s=0.3) as (link, fake):
        outcomes = await asyncio.gather(
            *ask(link, "a"), *ask(link, "b", repeatable=False), return_exceptions=True
        )
        assert "0.3 s: Redis is read-only" in str(outcomes[0])
        assert str(outcomes[1]).endswith("the outcome is unknown: Redis is read-only")
        # What it said once is no explanation of a later silence.
        fake.answer = lambda command: None if command[0] == b"ECHO" else echo(command)
        await until(lambda: link.is_connected, "another connection")
        with pytest.raises(Unavailable, match=r"within 0\.3 s$"):
            await link.request("ECHO", "c")


async def test_waiting_ends_in_time_and_the_silent_connection_is_given_up() -> None:
    async with linked(lambda command: None, timeout_s=0.1) as (link, fake):
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
            await link.request("ECHO", "a")
        assert loop.time() - started < 1.0
        fake.answer = echo
        link._timeout_s = 5.0
        await until(lambda: len(fake.writers) == 2 and link.is_connected, "another connection")
        assert await link.request("ECHO", "b") == b"b"
        assert asked(fake) == [b"a", b"b"]


async def test_a_silent_connection_is_given_up_also_when_nobody_had_the_patience() -> None:
    """Whoever asks several things has less time for each than a connection has to answer."""
    async with linked(lambda command: None, timeout_s=2.0) as (link, fake):
        for name in ("a", "b"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await link.request("ECHO", name)
        fake.answer = echo
        link._timeout_s = 5.0
        await until(lambda: len(fake.writers) == 2 and link.is_connected, "another connection")
        assert await link.request("ECHO", "c") == b"c"
        assert asked(fake) == [b"a", b"b", b"c"]


async def test_an_answer_that_nobody_had_the_patience_for_keeps_the_connection() -> None:
    async with linked(lambda command: None, timeout_s=2.0) as (link, fake):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.request("ECHO", "a")
        fake.writers[0].write(b"+a\r\n")
        fake.answer = echo
        given_up_by = asyncio.get_running_loop().time() + 2.2
        await until(lambda: asyncio.get_running_loop().time() > given_up_by, "it was looked at")
        link._timeout_s = 5.0
        assert await link.request("ECHO", "b") == b"b"
        assert len(fake.writers) == 1


async def test_a_late_answer_is_not_taken_for_another() -> None:
    async with linked(lambda command: b"+bonus" if command[-1] == b"a" else None) as (link, fake):
        # Half an answer shows that the connection lives, so it is kept.
        link._timeout_s = 0.1
        with pytest.raises(Unavailable):
            await link.request("ECHO", "a")
        link._timeout_s = 5.0
        [waiting] = ask(link, "b")
        await until(lambda: asked(fake) == [b"a", b"b"], "the second has arrived")
        fake.writers[0].write(b" late\r\n+mine\r\n")
        assert await waiting == b"mine"


async def test_what_nobody_waits_for_is_never_sent() -> None:
    async with linked(echo) as (link, fake):
        tasks = ask(link, "a", "b", "c")
        await asyncio.sleep(0)
        tasks[1].cancel()
        # The write of this turn has not happened yet.
        await asyncio.wait(tasks)
        await link.request("ECHO", "d")
        assert asked(fake) in ([b"a", b"c", b"d"], [b"a", b"b", b"c", b"d"])
        fake.writers[0].transport.abort()
        await until(lambda: not link.is_connected, "the loss is noticed")
        [gone] = ask(link, "gone")
        await asyncio.sleep(0)
        gone.cancel()
        assert await link.request("ECHO", "e") == b"e"
        assert b"gone" not in asked(fake)


async def test_more_than_the_bound_is_refused_at_once() -> None:
    async with linked(lambda command: None, bound=3) as (link, _):
        tasks = ask(link, "a", "b", "c")
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too much waits"):
            await link.request("ECHO", "d")
        assert not any(task.done() for task in tasks)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)


async def test_expired_requests_make_room_while_redis_is_away() -> None:
    async with linked(echo, timeout_s=0.1, bound=3) as (link, fake):
        fake.answer = lambda command: None
        for _ in range(3):
            outcomes = await asyncio.gather(*ask(link, "a", "b", "c"), return_exceptions=True)
            assert all("did not answer" in str(outcome) for outcome in outcomes)
            await until(lambda: link.is_connected, "another connection")


async def test_an_unread_socket_lets_requests_wait_where_they_can_expire() -> None:
    async with linked(echo) as (link, fake):
        fake.writers[0].transport.pause_reading()  # type: ignore[attr-defined]
        big = "x" * 200_000
        tasks = [asyncio.create_task(link.request("ECHO", big)) for _ in range(100)]
        connection = of(link)._keeper.connection
        assert connection is not None
        await until(lambda: not connection.is_writable, "the socket is full")
        assert of(link)._queue
        fake.writers[0].transport.resume_reading()  # type: ignore[attr-defined]
        assert await asyncio.gather(*tasks) == [big.encode()] * 100


async def test_a_new_connection_ends_what_is_left_of_the_old_one() -> None:
    async with linked(echo) as (link, _):
        assert of(link).preamble()[1] == [("CLIENT", "KILL", "ID", "7", "ADDR", "1.2.3.4:5")]
        assert of(link).preamble()[0] == [("SCRIPT", "LOAD", PUBLISH.text)]


async def test_an_unknown_byte_ends_the_connection_and_nothing_is_lost() -> None:
    async with linked(first_time(b"HTTP/1.1 400\r\n")) as (link, fake):
        assert await link.request("ECHO", "a") == b"a"
        assert len(fake.writers) == 2


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async with linked(echo) as (link, fake):
        fake.writers[0].write(b"+surprise\r\n")
        await until(lambda: len(fake.writers) == 2 and link.is_connected, "another connection")
        assert await link.request("ECHO", "a") == b"a"


# -- replicas -------------------------------------------------------------------------------------


def replicated(replies: list[bytes]) -> Callable[[list[bytes]], bytes]:
    """Answer each WAIT with the next reply, the rest as ``echo``."""
    waits = iter(replies)
    return lambda command: next(waits) if command[0] == b"WAIT" else echo(command)


async def test_requests_are_answered_once_replicas_have_them() -> None:
    async with linked(replicated([b":1\r\n"]), replicas=Replicas(1, 0.7)) as (link, fake):
        assert await asyncio.gather(*ask(link, "a", "b")) == [b"a", b"b"]
        assert fake.commands[-3:] == [[b"ECHO", b"a"], [b"ECHO", b"b"], [b"WAIT", b"1", b"700"]]


async def test_what_too_few_replicas_have_is_not_accepted() -> None:
    answers = replicated([b":1\r\n", b":2\r\n"])
    async with linked(answers, replicas=Replicas(2, 0.7)) as (link, _):
        outcomes = await asyncio.gather(*ask(link, "a", "b"), return_exceptions=True)
        assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["replicas_short"] * 2
        assert await asyncio.gather(*ask(link, "a", "b")) == [b"a", b"b"]


async def test_what_waits_for_replicas_is_sent_again_first() -> None:
    async with linked(lambda command: None, replicas=Replicas(1, 0.7)) as (link, fake):
        first, once = (*ask(link, "a"), *ask(link, "once", repeatable=False))
        await until(lambda: len(fake.commands) == 3, "they have arrived")
        fake.writers[0].write(b"+a\r\n+once\r\n")
        await until(lambda: len(of(link)._unsafe) == 2, "they wait for replicas")
        later = ask(link, "b")
        fake.answer = replicated([b":1\r\n"])
        fake.writers[0].transport.abort()
        assert await asyncio.gather(first, *later) == [b"a", b"b"]
        with pytest.raises(Unavailable, match="the outcome is unknown"):
            await once


# -- known to be away -----------------------------------------------------------------------------


async def test_a_redis_that_has_been_away_for_long_is_tried_once_for_each_request() -> None:
    async with linked(echo, timeout_s=2.0) as (link, fake):
        fake.refuse()
        fake.writers[0].transport.abort()
        [waiting] = ask(link, "a")
        with pytest.raises(Unavailable, match="did not answer"):
            await waiting
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(Unavailable, match="Redis is away") as away:
            await link.request("ECHO", "b")
        assert loop.time() - started < 1.5
        assert away.value.retry_after == 1
        fake.accept()
        assert await link.request("ECHO", "c") == b"c"
        assert asked(fake)[-1:] == [b"c"]
