"""Turns: one at a time, in order, with a bound on how long and how many wait."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker.turns import Turns
from relay.errors import Unavailable

pytestmark = pytest.mark.anyio


async def test_one_key_is_changed_by_one_at_a_time_and_in_order() -> None:
    turns = Turns()
    log: list[str] = []

    async def change(name: str) -> bool:
        async with turns.of("a") as waited:
            log.append(f"{name} comes")
            await asyncio.sleep(0)
            log.append(f"{name} goes")
        return waited

    assert await asyncio.gather(*map(change, "xyz")) == [False, True, True]
    assert log == ["x comes", "x goes", "y comes", "y goes", "z comes", "z goes"]
    assert len(turns) == 0


async def test_other_keys_do_not_wait() -> None:
    turns = Turns()
    async with turns.of("a"), turns.of("b") as waited:
        assert not waited
        assert len(turns) == 2
    assert len(turns) == 0


async def test_who_waits_too_long_is_told_so() -> None:
    turns = Turns(wait_s=0.0)
    async with turns.of("a"):
        with pytest.raises(Unavailable, match="others are changing the same thing"):
            async with turns.of("a"):
                raise AssertionError("two at once")
    assert len(turns) == 0
    async with turns.of("a") as waited:
        assert not waited


async def test_too_many_do_not_wait_at_all() -> None:
    turns = Turns(waiting_most=1)

    async def change() -> None:
        async with turns.of("a"):
            pass

    async with turns.of("a"):
        waiting = asyncio.create_task(change())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too many change the same thing"):
            await change()
    await waiting
    assert len(turns) == 0


async def test_a_change_that_fails_gives_its_turn_on() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError):
        async with turns.of("a"):
            raise ZeroDivisionError
    assert len(turns) == 0
