"""How a process is told to stop: by signals, and a worker by its supervisor too.

The first word asks for a drain, a second one for an end at once. Used by ``server`` and
``workers``; what stopping means is theirs.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final

from relay.errors import Unavailable

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
DRAIN: Final = 1
AT_ONCE: Final = 2


class Stop:
    """What this process was told so far.

    ``supervised``: a signal never means more than a drain, since whoever signals a whole group
    (Ctrl-C, systemd) reaches the supervisor as well, and the supervisor tells how often.
    """

    def __init__(self, *, supervised: bool = False) -> None:
        self.word = 0
        self._supervised = supervised
        self._obey: Callable[[], object] | None = None

    def heed_signals(self) -> None:
        """Take signals as words from now on, also those that were held back.

        For good: one more signal is not to kill a process that is ending well.
        """
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def tell(self, word: int) -> None:
        """Pass a word on to whoever obeys; from any thread, and from within a signal handler."""
        self.word = max(self.word, word)
        obey = self._obey
        if obey is not None:
            obey()

    def obeyed_by(self, obey: Callable[[], object] | None) -> None:
        """Call ``obey`` at each word from now on, and at once when there was one before."""
        self._obey = obey
        if obey is not None and self.word:
            obey()

    async def unless_told(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do ``work`` and return True, or give it up at the first word and return False."""
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        self.obeyed_by(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            await task
        except (asyncio.CancelledError, Unavailable):
            if not self.word:
                raise
        finally:
            self.obeyed_by(None)
        return not self.word

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.tell(DRAIN if self._supervised else self.word + 1)
