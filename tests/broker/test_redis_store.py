"""The store on Redis while others change the same user."""

from __future__ import annotations

from typing import Any

import pytest

from relay.broker.redis import RedisStore
from relay.errors import Unavailable
from relay.users import Profile
from tests.contract.harness import RedisRig

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000_000_000


async def test_a_change_by_another_in_between_is_kept(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    await one.save_user("ann", Profile(name="Ann"), NOW)
    run = one._redis.run
    interrupted = False

    async def run_after_another(*arguments: Any) -> Any:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            await two.save_user("ann", Profile(image="a.png"), NOW + 1)
        return await run(*arguments)

    one._redis.run = run_after_another  # type: ignore[method-assign]
    changed = await one.save_user("ann", Profile(role="admin"), NOW + 2)
    assert (changed.name, changed.image, changed.role) == ("Ann", "a.png", "admin")
    assert await two.user("ann") == changed


async def test_a_user_that_never_stays_the_same_is_unavailable(rig: RedisRig) -> None:
    broker = await rig.broker()
    store = RedisStore(broker)
    await store.save_user("ann", Profile(name="Ann"), NOW)
    run = store._redis.run
    changes = 0

    async def run_after_another(script: Any, keys: Any, *arguments: Any) -> Any:
        nonlocal changes
        changes += 1
        with rig.server.client() as client:
            text = client.get(broker.keyspace.user("ann"))
            assert isinstance(text, str)
            client.set(broker.keyspace.user("ann"), text + " ")
        return await run(script, keys, *arguments)

    store._redis.run = run_after_another  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="too many at once"):
        await store.save_user("ann", Profile(role="admin"), NOW)
    assert changes == 10
