"""The way to a primary that Sentinel watches over: it is asked for anew on each connection.

While the relay runs it also listens for ``+switch-master``: connections to the old primary are
given up at once, be it alive or not. What sentinels say is checked with the server itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import msgspec

from relay import logs
from relay.broker.resp import Address, Command, Connection, pack
from relay.errors import Unavailable
from relay.retry import backoff
from relay.tasks import Tasks

log = logs.get(__name__)

ASK_TIMEOUT_S: Final = 1.0
"""One that does not answer in that time is passed over."""
PING_S: Final = 2.0
SILENCE_S: Final = 6.0
SWITCHED: Final = b"+switch-master"


class Sentinels:
    """Leads to the server that the sentinels at ``addresses`` call the primary ``primary``."""

    def __init__(self, addresses: Sequence[Address], primary: str, login: Address) -> None:
        self._sentinels = [_hasty(address) for address in addresses]
        self._primary = primary
        self._login = login
        self._open: dict[Connection, Address] = {}
        self._random = Random()  # noqa: S311 - jitter, not secrets
        self._tasks = Tasks("sentinels")

    def __str__(self) -> str:
        return f"{self._primary} of {','.join(map(str, self._sentinels))}"

    def start(self) -> None:
        """Follow what the sentinels announce."""
        self._tasks.keep(self._follow, "following the sentinels")

    async def aclose(self) -> None:
        """Stop following."""
        await self._tasks.aclose()

    async def open(
        self, name: str, commands: Sequence[Command] = (), optional: Sequence[Command] = ()
    ) -> Connection:
        """Connect to the primary of this moment, as ``resp.Route.open``."""
        address = await self.find()
        checked = [("INFO", "replication"), *commands]
        connection = await address.open(name, checked, optional)
        if b"role:master" not in connection.answers.pop(0):
            connection.abort("not the primary")
            raise Unavailable(f"Redis at {address} is not the primary, as the sentinels say")
        self._open = {each: at for each, at in self._open.items() if not each.is_closed}
        self._open[connection] = address
        return connection

    async def find(self) -> Address:
        """Return the primary's address as told by the first sentinel that knows it."""
        reasons = []
        for sentinel in list(self._sentinels):
            try:
                return await self._ask(sentinel)
            except Unavailable as error:
                reasons.append(error.message)
                self._ask_another()
        raise Unavailable(f"no sentinel knows {self._primary}: {'; '.join(reasons)}")

    def _ask_another(self) -> None:
        """Let the next question go to the sentinel that was not asked for longest."""
        self._sentinels.append(self._sentinels.pop(0))

    async def _ask(self, sentinel: Address) -> Address:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._primary)
        connection = await sentinel.open("relay:find", [question])
        connection.abort("answered")
        [answer] = connection.answers
        if answer is None:
            raise Unavailable(f"the sentinel at {sentinel} knows no {self._primary!r}")
        host, port = answer
        return self._login.at(host.decode(), int(port))

    # -- following --------------------------------------------------------------------------------

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen(self._sentinels[0])
                failures = 0
            except Unavailable as error:
                failures += 1
                log.warning("no sentinel to listen to", reason=error.message)
                self._ask_another()
            except Exception:
                self._ask_another()
                raise
            await asyncio.sleep(backoff(max(1, failures), self._random))

    async def _listen(self, sentinel: Address) -> None:
        """Give up connections to a primary that was replaced, until this sentinel falls silent."""
        connection = await sentinel.open("relay:follow", [("SUBSCRIBE", SWITCHED)])
        loop = asyncio.get_running_loop()
        connection.on_reply = self._on_reply
        try:
            # What was announced before it listened.
            self._primary_is(await self._ask(sentinel))
            while not connection.is_closed and loop.time() - connection.heard_at < SILENCE_S:
                connection.write(pack(("PING",)))
                await asyncio.sleep(PING_S)
        finally:
            connection.abort("no longer listened to")

    def _on_reply(self, reply: Any) -> None:
        match reply:
            case [b"message", _, bytes(message)]:
                name, _, _, host, port = message.decode().split()
                if name == self._primary:
                    log.warning("the primary was replaced", primary=f"{host}:{port}")
                    self._primary_is(self._login.at(host, int(port)))

    def _primary_is(self, address: Address) -> None:
        for connection, at in list(self._open.items()):
            if (at.host, at.port) != (address.host, address.port):
                del self._open[connection]
                connection.abort("another server is the primary now")


def _hasty(address: Address) -> Address:
    return msgspec.structs.replace(address, timeout_s=ASK_TIMEOUT_S)
