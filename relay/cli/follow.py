"""What ``relay watch`` knows while it follows a call: its position, and what each frame means.

Pure: text of frames in, lines to show out. ``watch`` owns the socket, the clock and the screen.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from relay import wire
from relay.events import Position

TOKEN_EXPIRED: Final = 40
FLOOD: Final = 4003
_SILENT: Final = frozenset({"health.check", "call.watchers", "token.refreshed"})


class Line(msgspec.Struct, frozen=True):
    """Something to show. ``notice`` is about the watching itself, not an event of the call."""

    text: str
    notice: bool = False


class Stopped(Exception):
    """The relay refused for good; the text says why."""


class Follower:
    """Follows one call over any number of sockets, one after another."""

    def __init__(self, cid: str, since: Position | None, *, as_json: bool) -> None:
        self.cid = cid
        self.position = since
        self.watching = False
        self._as_json = as_json

    def login(self, token: str, user_id: str) -> str:
        """Return the first frame of a socket."""
        self.watching = False
        return _text({"token": token, "products": ["video"], "user_details": {"id": user_id}})

    def receive(self, text: str) -> tuple[list[Line], str | None]:
        """Take a frame; return what to show, and what to send, if anything.

        Raises ``BadInput`` for a frame that is no JSON object, ``Stopped`` when it makes no sense
        to go on.
        """
        frame = wire.decode_object(text, "the relay's frame")
        match frame.get("type"):
            case "connection.ok":
                return [], self._watch()
            case "connection.error" | "error":
                return self._refused(frame.get("error") or {}), None
            case "call.watching":
                return self._watching(frame, text), None
            case "call.position":
                return self._lost(frame, text), None
            case kind if kind in _SILENT:
                return [], None
        return self._event(frame, text), None

    def _watch(self) -> str:
        command: dict[str, Any] = {"type": "call.watch", "id": 1, "call_cid": self.cid}
        if self.position is not None:
            command["since"] = self.position._asdict()
        return _text(command)

    def _refused(self, error: dict[str, Any]) -> list[Line]:
        if error.get("code") == TOKEN_EXPIRED or error.get("StatusCode") == 503:
            return []  # temporary: the relay closes the socket, the next one gets a new token
        raise Stopped(f"refused: {error.get('message')} (code {error.get('code')})")

    def _watching(self, frame: dict[str, Any], text: str) -> list[Line]:
        """Take the answer to ``call.watch``.

        After a recovery the position stays where we were: what was missed follows, and each event
        moves it on.
        """
        self.watching = True
        if "recovered" not in frame:
            self.position = _position(frame)
            return [self._notice(f"watching {self.cid} from {_written(self.position)}")]
        if frame["recovered"]:
            return [self._notice(f"watching {self.cid} again, nothing was lost")]
        return self._lost(frame, text)

    def _lost(self, frame: dict[str, Any], text: str) -> list[Line]:
        before, self.position = self.position, _position(frame)
        gap = f"events were missed between {_written(before)} and {_written(self.position)}"
        shown = [Line(text)] if self._as_json else []
        return [self._notice(f"{gap}: the relay no longer has them"), *shown]

    def _event(self, frame: dict[str, Any], text: str) -> list[Line]:
        self.position = _position(frame) or self.position
        return [Line(text if self._as_json else _told(frame))]

    def _notice(self, text: str) -> Line:
        return Line(text, notice=True)


def _text(frame: dict[str, Any]) -> str:
    return wire.encode(frame).decode()


def _position(frame: dict[str, Any]) -> Position | None:
    epoch, offset = frame.get("epoch"), frame.get("offset")
    return Position(epoch, offset) if isinstance(epoch, str) and isinstance(offset, int) else None


def _written(position: Position | None) -> str:
    return "nowhere" if position is None else f"{position.epoch}:{position.offset}"


def _told(event: dict[str, Any]) -> str:
    """Return an event as a line: when, where it stands, what, who, and what it carries."""
    user = event.get("user")
    who = user.get("id") if isinstance(user, dict) else None
    parts = (
        str(event.get("created_at", ""))[11:23],
        "(live)" if "offset" not in event else f"#{event['offset']}",
        event.get("type"),
        who or "-",
        wire.encode(event.get("custom", {})).decode(),
    )
    return printable("  ".join(str(part) for part in parts))


def printable(text: str) -> str:
    """Return ``text`` without characters that steer a terminal: events are other people's."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
