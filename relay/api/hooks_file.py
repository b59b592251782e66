"""The file that ``RELAY_HOOKS`` names: hooks that no request changes, as TOML.

[[hook]]
id = "billing"                        # a name of your own, which stays
hook_type = "webhook"
webhook_url = "https://billing.example/events"
event_types = ["call.ended"]          # none: every type
ordered = true

Every field is described in docs/delivery.md.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from relay import hooks
from relay.api.app import change_hooks
from relay.broker import Store
from relay.errors import BadInput
from relay.hooks import Hooks, Rules
from relay.settings import SettingsError


class HooksFile:
    """The hooks of a file, read and checked when it is made; without a path there are none.

    Raises ``SettingsError`` saying what to correct.
    """

    def __init__(self, path: str, rules: Rules) -> None:
        self._rules = rules
        self._entries = _read(path) if path else []
        try:
            self.count = len(hooks.with_file(Hooks(), self._entries, rules).hooks)
        except BadInput as error:
            raise SettingsError(f"{path}: {error.message}") from None

    async def apply(self, store: Store) -> None:
        """Make the file's hooks those of the relay; raises ``Unavailable``.

        Hooks of an older file are replaced or deleted, those of requests stay. Nothing is done when
        they are there: a process can start while a part of Redis is away, and who delivers tells
        the partitions that do not know of them.
        """
        known = (await store.hooks()).hooks
        if self._added_to(known) != known:
            await change_hooks(store, self._added_to, self._rules.now_ns)

    def _added_to(self, known: Hooks) -> Hooks:
        return hooks.with_file(known, self._entries, self._rules)


def _read(path: str) -> object:
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    unknown = sorted(content.keys() - {"hook"})
    if unknown:
        raise SettingsError(f"{path}: {unknown[0]!r} is not known: each hook is a [[hook]]")
    return content.get("hook", [])
