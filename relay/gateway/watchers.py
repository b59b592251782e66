"""Tell the watchers of a call who else watches, at most once a second.

Each process says in the broker who watches on it; the list of all is read back after a change here
or elsewhere, or when a process has died. The calls of a partition are told one after the other and
apart from all others: a server that is silent holds up its own calls alone. Used by the hub only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Final

from relay import logs, metrics, users
from relay.broker import Broker, Roster, Unavailable
from relay.gateway import frames
from relay.gateway.call import WatchedCall
from relay.tasks import Tasks

log = logs.get(__name__)

USERS_SHOWN: Final = 50
INTERVAL_S: Final = 1.0
GATHER_S: Final = 0.05
"""A page that reloads leaves and joins; those who arrive together are told together."""
NODES_INTERVAL_S: Final = 3.0
AT_ONCE: Final = 50
"""Calls that are taken up in one turn of the loop."""
FAILED_INTERVAL_S: Final = 30.0
"""A list that cannot be told for a reason nobody foresaw must not fill the log."""


class WatcherBoard:
    """Keeps the rosters of this process in the broker and the merged list on the screens."""

    def __init__(
        self,
        broker: Broker,
        calls: Mapping[str, WatchedCall],
        announce: Callable[[str, bytes], None],
        tasks: Tasks,
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._announce = announce
        self._tasks = tasks
        self._due: dict[str, float] = {}
        self._telling: dict[int, dict[str, None]] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    def changed(self, cid: str) -> None:
        """Note that somebody here began or ceased to watch."""
        self._changed.add(cid)
        self.nudged(cid)

    def nudged(self, cid: str) -> None:
        """Note that the list may have changed on another process."""
        self._put_off(cid, asyncio.get_running_loop().time() + GATHER_S)

    def interrupted(self, cids: Collection[str]) -> None:
        """Say again who watches these: the broker may have forgotten it."""
        for cid in cids:
            self.changed(cid)

    def start(self) -> None:
        """Work off what is due, for as long as ``tasks`` are not closed."""
        self._tasks.keep(self._run, "telling who watches")
        self._tasks.keep(self._notice_deaths, "noticing processes that died")

    async def _run(self) -> None:
        while True:
            await self._next_due()
            for cid in self._take_due(asyncio.get_running_loop().time()):
                self._tell_soon(cid)

    async def _next_due(self) -> None:
        """Wait until something is due, or more has become so."""
        self._wake.clear()
        if not self._due:
            await self._wake.wait()
        delay = min(self._due.values()) - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(delay, GATHER_S)))

    def _take_due(self, now: float) -> list[str]:
        due = [cid for cid, at in self._due.items() if at <= now][:AT_ONCE]
        for cid in due:
            del self._due[cid]
        return due

    def _put_off(self, cid: str, until: float) -> None:
        """Have a call's turn come then, if it does not come before."""
        if cid not in self._due:
            self._due[cid] = until
            self._wake.set()

    def _tell_soon(self, cid: str) -> None:
        """Queue a call in its partition, where another may be waiting for the broker."""
        partition = self._broker.partition(cid)
        if (queue := self._telling.get(partition)) is None:
            queue = self._telling[partition] = {}
            self._tasks.keep(partial(self._tell_all, partition), "telling a partition's watchers")
        queue[cid] = None

    async def _tell_all(self, partition: int) -> None:
        """Tell the calls of a partition until none waits; one that was just shown has its turn
        when the interval is over.
        """
        queue = self._telling[partition]
        while queue:
            cid = next(iter(queue))
            del queue[cid]
            call = self._calls.get(cid)
            now = asyncio.get_running_loop().time()
            if call is not None and call.shown and now < call.shown_at + INTERVAL_S:
                self._put_off(cid, call.shown_at + INTERVAL_S)
            else:
                await self._tell(cid, call)
        del self._telling[partition]

    async def _tell(self, cid: str, call: WatchedCall | None) -> None:
        changed = cid in self._changed
        self._changed.discard(cid)
        try:
            if changed:
                await self._broker.set_roster(cid, _roster(call))
            if call is not None:
                await self._show(call, always=changed)
        except Unavailable as error:
            log.info("list of watchers waits", cid=cid, reason=error.message)
            self._try_again(cid, INTERVAL_S, changed=changed)
        except Exception:
            metrics.BACKGROUND_FAILURES.inc()
            log.exception("list of watchers failed", cid=cid)
            self._try_again(cid, FAILED_INTERVAL_S, changed=changed)

    def _try_again(self, cid: str, wait_s: float, *, changed: bool) -> None:
        if changed:
            self._changed.add(cid)
        self._put_off(cid, asyncio.get_running_loop().time() + wait_s)

    async def _show(self, call: WatchedCall, *, always: bool) -> None:
        """Send the merged list; one that did not change only to please newcomers."""
        rosters = await self._broker.rosters(call.cid)
        call.roster_nodes = frozenset(rosters)
        count = sum(roster.count for roster in rosters.values())
        listed = _distinct(chain.from_iterable(roster.users for roster in rosters.values()))
        shown = frames.watchers(call.cid, count, listed)
        if always or shown != call.shown:
            call.shown = shown
            call.shown_at = asyncio.get_running_loop().time()
            self._announce(call.cid, shown)

    async def _notice_deaths(self) -> None:
        """Read a call's list again when a process that was on it is no longer alive."""
        while True:
            await asyncio.sleep(NODES_INTERVAL_S)
            try:
                alive = await self._broker.nodes()
            except Unavailable:
                continue  # after it heals, every call is looked at anyway
            for call in self._calls.values():
                if not call.roster_nodes <= alive:
                    self.nudged(call.cid)


def _roster(call: WatchedCall | None) -> Roster:
    if call is None:
        return Roster(0)
    watchers = chain(call.live, call.recovering)
    listed = _distinct(users.summary(watcher.user) for watcher in watchers)
    return Roster(len(call.live) + len(call.recovering), tuple(listed))


def _distinct(summaries: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return the first ``USERS_SHOWN`` users, each once, ordered by id so that lists compare."""
    found: dict[str, dict[str, str]] = {}
    for summary in summaries:
        found.setdefault(summary["id"], summary)
        if len(found) == USERS_SHOWN:
            break
    return [found[user_id] for user_id in sorted(found)]
