"""The texts of the relay's own frames: ``connection.*``, ``health.check``, replies, notices.

Pure. Their shapes are written down in docs/protocol.md.
"""

from __future__ import annotations

from typing import Any

from relay import users, wire
from relay.errors import RelayError
from relay.events import Position, Publication
from relay.users import User

PING = b"\x89\x00"
"""A whole frame; the others here are texts."""


def connection_ok(user: User, connection_id: str, now_ns: int) -> bytes:
    """Return the answer to a first frame that authenticated."""
    return wire.encode(
        {
            "type": "connection.ok",
            "created_at": wire.rfc3339(now_ns),
            "connection_id": connection_id,
            "me": wire.with_rfc3339(users.own(user)),
        }
    )


def connection_error(error: RelayError, now_ns: int) -> bytes:
    """Return the answer to a first frame that did not."""
    return wire.encode(
        {
            "type": "connection.error",
            "created_at": wire.rfc3339(now_ns),
            "connection_id": "",
            "error": error.body(),
        }
    )


def health_check(connection_id: str, now_ns: int) -> bytes:
    """Return the heartbeat, an answer and unasked alike."""
    return b'{"type":"health.check","connection_id":"%b","created_at":"%b","custom":{}}' % (
        connection_id.encode(),
        wire.rfc3339(now_ns).encode(),
    )


def draining(within_ms: int) -> bytes:
    """Return the notice that this socket will be closed, and how long the peer has to move."""
    return wire.encode({"type": "connection.draining", "reconnect_within_ms": within_ms})


def error(command_id: Any, failure: RelayError) -> bytes:
    """Return the refusal of a command; ``id`` is the command's, null when it had none."""
    return wire.encode({"type": "error", "id": command_id, "error": failure.body()})


def watching(command_id: Any, cid: str, position: Position, recovered: bool | None) -> bytes:
    """Return the reply to ``call.watch``; ``recovered`` None leaves the field out."""
    reply: dict[str, Any] = {"type": "call.watching", "id": command_id, "call_cid": cid}
    reply |= {"epoch": position.epoch, "offset": position.offset}
    if recovered is not None:
        reply["recovered"] = recovered
    return wire.encode(reply)


def unwatched(command_id: Any, cid: str) -> bytes:
    """Return the reply to ``call.unwatch``."""
    return wire.encode({"type": "call.unwatched", "id": command_id, "call_cid": cid})


def sent(command_id: Any, publication: Publication) -> bytes:
    """Return the reply to ``call.send``; without a position when the event was volatile."""
    reply = {
        "type": "call.sent",
        "id": command_id,
        "call_cid": publication.cid,
        "event_id": publication.event_id,
    }
    if publication.position is not None:
        reply["epoch"], reply["offset"] = publication.position
    return wire.encode(reply)


def refreshed(command_id: Any) -> bytes:
    """Return the reply to ``token.refresh``."""
    return wire.encode({"type": "token.refreshed", "id": command_id})


def lost(cid: str, position: Position) -> bytes:
    """Return the notice that events before ``position`` are missing and will not come."""
    return wire.encode(
        {
            "type": "call.position",
            "call_cid": cid,
            "epoch": position.epoch,
            "offset": position.offset,
            "recovered": False,
        }
    )


def watchers(cid: str, count: int, summaries: list[dict[str, str]]) -> bytes:
    """Return the notice of who watches a call."""
    return wire.encode(
        {"type": "call.watchers", "call_cid": cid, "count": count, "users": summaries}
    )
