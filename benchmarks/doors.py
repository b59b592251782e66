"""How one event is put in: the bytes of one publish, for each door that takes a stream of them.

The load client writes these bytes again and again and only replaces ``BLANK`` by its clock, so a
new door is a function here and a line in ``DOORS``. Webhooks are missing: each needs a signature.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jwt

from benchmarks.servers import API_KEY, API_SECRET

CID = "default:bench"
BLANK = "@" * 19
CONNECT_PATH = f"/video/connect?api_key={API_KEY}&stream-auth-type=jwt"
SOCKETS_PER_USER = 40
"""Below the relay's bound of connections per user."""

PUBLISHERS = 16

Json = dict[str, object]
Way = Literal["socket", "http", "redis"]


@dataclass(frozen=True, slots=True)
class Door:
    """A way into the relay: where publishers connect and what one writes for one event.

    ``connections``: browsers and HTTP clients are many, each waits for its own answers; a backend
    on Redis pipelines over one connection.
    """

    name: str
    way: Way
    publish: Callable[[Json], bytes]

    @property
    def connections(self) -> int:
        """How many publishers share the work."""
        return 1 if self.way == "redis" else PUBLISHERS


def custom(size: int) -> Json:
    """Return the ``custom`` of every event: the clock's blank, filled up to ``size`` bytes."""
    bare = compact({"sent_ns": BLANK, "text": ""})
    return {"sent_ns": BLANK, "text": "x" * max(0, size - len(bare))}


def compact(value: Json) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def server_frame(size: int) -> bytes:
    """Return a finished WebSocket text frame of ``size`` bytes, as the floor sends it on."""
    for head in (2, 4):
        frame = text_frame(compact(custom(size - head)), masked=False)
        if len(frame) == size:
            return frame
    raise ValueError(f"no frame of {size} bytes holds the clock")


def text_frame(payload: bytes, *, masked: bool) -> bytes:
    """Return one text frame; a mask of zeros leaves the payload readable for the load client."""
    bit, key = (0x80, bytes(4)) if masked else (0, b"")
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, bit | len(payload)) + key + payload
    return struct.pack("!BBH", 0x81, bit | 126, len(payload)) + key + payload


def first_frames(sockets: int, name: str = "bench") -> list[str]:
    """Return the first frames of as many users as these sockets need."""
    users = [f"{name}-{n}" for n in range(1, sockets // SOCKETS_PER_USER + 2)]
    return [_first_frame(user) for user in users]


def watch_frame() -> str:
    """Return the command that watches the call."""
    return compact({"type": "call.watch", "id": 1, "call_cid": CID}).decode()


def _first_frame(user: str) -> str:
    token = jwt.encode({"user_id": user}, API_SECRET, algorithm="HS256")
    details = {"id": user, "name": user}
    return compact({"token": token, "products": ["video"], "user_details": details}).decode()


def _call_send(content: Json, *, volatile: bool) -> bytes:
    command: Json = {"type": "call.send", "id": 1, "call_cid": CID, "custom": content}
    return text_frame(compact(command | ({"volatile": True} if volatile else {})), masked=True)


def _socket_volatile(content: Json) -> bytes:
    return _call_send(content, volatile=True)


def _socket_kept(content: Json) -> bytes:
    return _call_send(content, volatile=False)


def _redis_live(content: Json) -> bytes:
    return _resp(b"PUBLISH", b"relay:live", compact(_event(content)))


def _redis_ingest(content: Json) -> bytes:
    return _resp(b"XADD", b"relay:ingest", b"*", b"event", compact(_event(content)))


def _event(content: Json) -> Json:
    return {"type": "custom", "call_cid": CID, "custom": content, "user_id": "bench-publisher"}


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def _http_post(content: Json) -> bytes:
    body = compact({"custom": content, "user_id": "bench-publisher"})
    token = jwt.encode({"server": True}, API_SECRET, algorithm="HS256")
    head = (
        f"POST /api/v2/video/call/{CID.replace(':', '/')}/event?api_key={API_KEY} HTTP/1.1\r\n"
        f"Host: 127.0.0.1\r\nAuthorization: {token}\r\nstream-auth-type: jwt\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


SOCKET_VOLATILE = Door("call.send, volatile", "socket", _socket_volatile)
SOCKET_KEPT = Door("call.send, kept", "socket", _socket_kept)
SOCKET_ELSEWHERE = Door("call.send to process 2, kept", "socket", _socket_kept)
HTTP_POST = Door("POST …/event, kept", "http", _http_post)
REDIS_LIVE = Door("Redis PUBLISH, volatile", "redis", _redis_live)
REDIS_INGEST = Door("Redis XADD, kept", "redis", _redis_ingest)

EMBEDDED_DOORS = (SOCKET_VOLATILE, SOCKET_KEPT, HTTP_POST)
REDIS_DOORS = (REDIS_LIVE, REDIS_INGEST, SOCKET_VOLATILE, SOCKET_KEPT, HTTP_POST)
