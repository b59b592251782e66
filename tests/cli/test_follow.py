"""What ``relay watch`` makes of the relay's frames: transcripts, no socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.cli.follow import Follower, Line, Stopped, printable
from relay.errors import BadInput
from relay.events import Position

CID = "default:demo"


def event(offset: int, epoch: str = "k3", **fields: Any) -> dict[str, Any]:
    return {
        "type": "custom",
        "created_at": "2026-11-23T07:34:33.477260007Z",
        "call_cid": CID,
        "custom": {"n": offset},
        "user": {"id": "john"},
        "event_id": f"e{offset}",
        "epoch": epoch,
        "offset": offset,
    } | fields


class Talk:
    """Feeds frames to a follower and keeps what it showed and sent."""

    def __init__(self, since: Position | None = None, *, as_json: bool = False) -> None:
        self.follower = Follower(CID, since, as_json=as_json)
        self.shown: list[Line] = []
        self.sent: list[dict[str, Any]] = []

    def get(self, frame: dict[str, Any]) -> None:
        lines, reply = self.follower.receive(json.dumps(frame))
        self.shown += lines
        if reply is not None:
            self.sent.append(json.loads(reply))

    def connect(self) -> dict[str, Any]:
        """Log in on a new socket; return the watch command."""
        self.follower.login("token", "cli")
        self.get({"type": "connection.ok", "connection_id": "c"})
        return self.sent[-1]

    def watching(self, offset: int, **fields: Any) -> None:
        self.get({"type": "call.watching", "id": 1, "epoch": "k3", "offset": offset, **fields})

    @property
    def notices(self) -> list[str]:
        return [line.text for line in self.shown if line.notice]

    @property
    def events(self) -> list[str]:
        return [line.text for line in self.shown if not line.notice]


def test_the_first_frame_logs_in() -> None:
    frame = json.loads(Follower(CID, None, as_json=False).login("t", "ann"))
    assert frame == {"token": "t", "products": ["video"], "user_details": {"id": "ann"}}


def test_a_first_watch_asks_for_no_position() -> None:
    assert Talk().connect() == {"type": "call.watch", "id": 1, "call_cid": CID}


def test_since_asks_for_a_position() -> None:
    since = Talk(Position("k3", 41)).connect()["since"]
    assert since == {"epoch": "k3", "offset": 41}


def test_events_are_shown_with_time_position_type_user_and_custom() -> None:
    talk = Talk()
    talk.connect()
    talk.watching(6)
    talk.get(event(7))
    assert talk.events == ['07:34:33.477  #7  custom  john  {"n":7}']


def test_a_volatile_event_has_no_position_and_moves_none() -> None:
    talk = Talk()
    talk.connect()
    talk.watching(6)
    live = event(7)
    del live["epoch"], live["offset"]
    talk.get(live)
    assert talk.events == ['07:34:33.477  (live)  custom  john  {"n":7}']
    assert talk.follower.position == Position("k3", 6)


def test_a_reconnect_recovers_from_the_last_event() -> None:
    talk = Talk()
    talk.connect()
    talk.watching(6)
    talk.get(event(7))
    assert talk.connect()["since"] == {"epoch": "k3", "offset": 7}
    talk.watching(9, recovered=True)
    assert talk.notices[-1] == "watching default:demo again, nothing was lost"


def test_a_reconnect_in_the_middle_of_a_replay_loses_nothing() -> None:
    talk = Talk()
    talk.connect()
    talk.watching(6)
    talk.connect()
    talk.watching(9, recovered=True)  # 7, 8 and 9 follow
    talk.get(event(7))
    assert talk.connect()["since"] == {"epoch": "k3", "offset": 7}


def test_what_cannot_be_recovered_is_told_and_the_new_position_taken() -> None:
    talk = Talk(Position("k3", 4))
    talk.connect()
    talk.watching(9, recovered=False)
    assert talk.notices == [
        "events were missed between k3:4 and k3:9: the relay no longer has them"
    ]
    assert talk.follower.position == Position("k3", 9)


def test_a_gap_on_a_live_socket_is_told() -> None:
    talk = Talk()
    talk.connect()
    talk.watching(6)
    talk.get({"type": "call.position", "epoch": "k4", "offset": 12, "recovered": False})
    assert "between k3:6 and k4:12" in talk.notices[-1]
    assert talk.follower.position == Position("k4", 12)
    assert talk.events == []


def test_json_prints_events_and_gaps_as_they_came() -> None:
    talk = Talk(as_json=True)
    talk.connect()
    talk.watching(6)
    gap = {"type": "call.position", "epoch": "k4", "offset": 12, "recovered": False}
    talk.get(event(7))
    talk.get(gap)
    assert [json.loads(text) for text in talk.events] == [event(7), gap]


@pytest.mark.parametrize("kind", ["health.check", "call.watchers", "token.refreshed"])
def test_what_is_no_event_is_not_shown(kind: str) -> None:
    talk = Talk()
    talk.connect()
    talk.get({"type": kind})
    assert talk.shown == []


@pytest.mark.parametrize("kind", ["connection.error", "error"])
def test_a_refusal_stops(kind: str) -> None:
    error = {"code": 17, "message": "not allowed", "StatusCode": 403}
    with pytest.raises(Stopped, match=r"refused: not allowed \(code 17\)"):
        Talk().get({"type": kind, "error": error})


@pytest.mark.parametrize("error", [{"code": 40, "StatusCode": 401}, {"StatusCode": 503}])
def test_an_expired_token_and_an_absent_redis_do_not_stop(error: dict[str, int]) -> None:
    talk = Talk()
    talk.get({"type": "connection.error", "error": error})
    assert talk.shown == []


def test_a_new_socket_is_not_watching_yet() -> None:
    talk = Talk()
    talk.connect()
    assert not talk.follower.watching
    talk.watching(0)
    assert talk.follower.watching
    talk.follower.login("t", "ann")
    assert not talk.follower.watching


@pytest.mark.parametrize("text", ["", "[]", "{", "42"])
def test_what_is_no_frame_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="the relay's frame"):
        Follower(CID, None, as_json=False).receive(text)


def test_an_event_of_another_shape_is_shown_all_the_same() -> None:
    talk = Talk()
    talk.get({"type": "call.ended", "user": None})
    assert talk.events == ["  (live)  call.ended  -  {}"]


def test_nothing_steers_the_terminal() -> None:
    talk = Talk()
    talk.get(event(1, user={"id": "\x1b]0;gotcha\x07"}, custom={"c": "\x9b2J"}))
    assert talk.events[0].isprintable()
    assert printable("a\x1b[2Jü🎉\u202e") == "a\\x1b[2Jü🎉\\u202e"
