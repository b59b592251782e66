"""How far the hooks have come in a partition, and up to where all of them are done. Pure."""

from __future__ import annotations

from relay.broker import Changes, Key
from relay.egress.jobs import Job


class Track:
    """How far a hook has come in the partition.

    Entries up to ``cursor`` were taken or passed over; of these ``open`` are not done, in order;
    ``done`` are those above the first open one whose being done has been recorded. ``saved`` is
    what was last recorded of ``settled``.
    """

    __slots__ = ("cursor", "done", "lags", "open", "saved")

    def __init__(self, cursor: int) -> None:
        self.cursor = self.saved = cursor
        self.open: dict[int, Job] = {}
        self.done: set[int] = set()
        self.lags = False

    @property
    def settled(self) -> int:
        """The number up to which everything is done."""
        return next(iter(self.open)) - 1 if self.open else self.cursor


class Tracks(dict[str, Track]):
    """The tracks of a partition by hook; with a thousand of them, what has not moved costs nothing.

    ``moved`` has the hooks that have come further since the last ``settle_up``, ``trimmed`` the
    number up to which entries were removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: set[str] = set()
        self.trimmed = 0
        self._last = ""

    def settle_up(self, changes: Changes, front: int) -> None:
        """Add to the changes how far hooks have come; without hooks all is done to ``front``."""
        moved, self.moved = self.moved, set()
        if self._last not in self or self._last in moved:
            self._last = min(self, key=lambda hook_id: self[hook_id].settled, default="")
        lowest = self[self._last].settled if self._last else front
        if lowest > self.trimmed:
            changes.trim = self.trimmed = lowest
        for hook_id in moved & self.keys():
            self._settle(hook_id, lowest, changes)

    def _settle(self, hook_id: str, lowest: int, changes: Changes) -> None:
        track = self[hook_id]
        settled = track.settled
        for seq in [seq for seq in track.done if seq <= settled]:
            track.done.discard(seq)
            changes.tried.pop(Key(seq, hook_id), None)
            changes.forget.add(Key(seq, hook_id))
        if settled > max(lowest, track.saved):
            track.saved = changes.settled[hook_id] = settled
