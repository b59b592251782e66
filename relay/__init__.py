"""Relay: a self-hosted real-time event relay.

``relay.Publisher`` and ``relay.AsyncPublisher`` send events from a Python backend through Redis;
everything else is reached by the command ``relay``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.publisher import AsyncPublisher, Publisher

__all__ = ["AsyncPublisher", "Publisher", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the publishers when they are asked for: the command line does without redis-py."""
    if name in ("AsyncPublisher", "Publisher"):
        from relay import publisher

        return getattr(publisher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
