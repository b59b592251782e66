"""The relay's books: what its metrics must add up to, whatever happened to it before.

Every event a door accepted, every delivery it owed and every socket it opened is accounted for.
"""

from __future__ import annotations

import re

import httpx

from tests.processes import RelayProcess

DOORS = ("webhook", "api", "socket", "ingest", "live", "sqs", "relay")


class Ledger:
    """The metrics of a relay at one moment. ``total`` sums the series with these labels."""

    def __init__(self, text: str) -> None:
        self._series = re.findall(r"^(\w+)({.*})? (\S+)$", text, re.MULTILINE)

    def total(self, name: str, **labels: str) -> float:
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(value)
            for found, shown, value in self._series
            if found == name and all(one in shown for one in wanted)
        )

    def check(self) -> None:
        """Every equation of docs/operations.md, "The ledger"."""
        self._check_doors()
        owed = self.total("relay_deliveries_owed_total")
        outcomes = {
            name: self.total(f"relay_deliveries_{name}_total")
            for name in ("written", "skipped", "dropped")
        }
        assert owed == sum(outcomes.values()), (owed, outcomes)
        opened = self.total("relay_sockets_opened_total")
        ended = self.total("relay_sockets_closed_total")
        assert opened == ended + self.total("relay_sockets"), (opened, ended)
        assert self.total("relay_connections") <= self.total("relay_sockets")

    def _check_doors(self) -> None:
        for door in DOORS:
            accepted = self.total("relay_events_accepted_total", door=door)
            published = self.total("relay_events_published_total", door=door)
            repeated = self.total("relay_events_duplicate_total", door=door)
            failed = self.total("relay_events_failed_total", door=door)
            assert accepted == published + repeated + failed, (door, self.doors(door))

    def doors(self, door: str) -> dict[str, float]:
        """What a door has counted, for a message."""
        names = ("accepted", "published", "duplicate", "failed")
        return {name: self.total(f"relay_events_{name}_total", door=door) for name in names}


async def read(relay: RelayProcess) -> Ledger:
    """Return what a relay has counted so far."""
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=30) as client:
        return Ledger((await client.get("/metrics")).text)
