"""Which API key and secret a command uses: the configured ones, or the demo's.

The demo's are fixed and written in the manual, so that ``relay send`` in a second terminal just
works. They are public: whoever reaches a relay that runs on them can do everything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import click

from relay.settings import Settings, SettingsError

DEMO_KEY: Final = "demo"
DEMO_SECRET: Final = "demo-secret-not-for-production-use"  # noqa: S105 - public by design


class Credentials(NamedTuple):
    """An API key and the secret that signs for it."""

    key: str
    secret: str


DEMO: Final = Credentials(DEMO_KEY, DEMO_SECRET)


def configured(settings: Settings) -> Credentials | None:
    """Return the key and secret of the settings, None when there are none.

    Raises ``SettingsError`` when one of the two is missing.
    """
    if bool(settings.api_key) != bool(settings.api_secret):
        missing = "RELAY_API_SECRET" if settings.api_key else "RELAY_API_KEY"
        raise SettingsError(
            f"RELAY_API_KEY and RELAY_API_SECRET go together: set {missing} too, or neither"
        )
    if not settings.api_key:
        return None
    return Credentials(settings.api_key, settings.api_secret)


def or_demo(settings: Settings) -> Credentials:
    """Return the configured credentials, else the demo's, which is said on standard error."""
    found = configured(settings)
    if found is None:
        click.echo(
            "relay: RELAY_API_KEY and RELAY_API_SECRET are not set: using those of 'relay demo'",
            err=True,
        )
    return found or DEMO
