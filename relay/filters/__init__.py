"""Stream's filter language as values: read once, refused by path, evaluated on records.

    query = read_query(body, CALLS, default_sort=[Sort("created_at", ascending=False)])
    found = select(calls, query)          # or a store's query_calls(query), by way of its indexes

Pure. Used by the API (to read a request's query) and by both stores (to answer it). ``conditions``
is what a filter means, ``reading`` what may be asked, ``paging`` order and cursors, ``schemas``
which fields there are.
"""

from relay.filters.conditions import All, Filter, NoneOf, Some, Test
from relay.filters.paging import Found, Query, Sort, arrange, page, select
from relay.filters.reading import LIMIT_DEFAULT, LIMIT_MAX, listed, read_query
from relay.filters.schemas import CALLS, MEMBERS, USERS, Kind, Schema

__all__ = [
    "CALLS", "LIMIT_DEFAULT", "LIMIT_MAX", "MEMBERS", "USERS", "All", "Filter", "Found", "Kind",
    "NoneOf", "Query", "Schema", "Some", "Sort", "Test", "arrange", "listed", "page", "read_query",
    "select",
]  # fmt: skip
