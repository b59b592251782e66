"""The rig: real Redis servers, real relays, crowds of watchers in processes of their own."""

from __future__ import annotations

from tests.redis_server import redis_server

__all__ = ["redis_server"]
