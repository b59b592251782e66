"""Stream's filter language as a value: read once, refused by path, evaluated on records.

Pure. Used by the API (to read a request's query) and by both stores (to answer it).
"""

from __future__ import annotations

import msgspec


class Sort(msgspec.Struct, frozen=True):
    """One key of an order; a record without the field comes last either way."""

    field: str
    ascending: bool = True


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to find, in which order, how much of it, and from where on."""

    sort: tuple[Sort, ...] = ()
    limit: int = 25
    cursor: str | None = None
