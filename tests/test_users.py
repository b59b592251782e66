from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import users, wire
from relay.errors import BadInput, TooLarge
from relay.users import Profile, User

T1, T2 = 1_800_000_000_000_000_000, 1_800_000_001_000_000_000
JOHN = User(id="john", created_at=T1, updated_at=T1, name="John", image="j.png", custom={"a": 1})

# The fields that Stream's specification requires (stream-protocol.md, section 4).
USER_RESPONSE = {
    "id", "custom", "language", "role", "teams", "created_at", "updated_at", "banned", "online",
    "blocked_user_ids", "name", "image",
}  # fmt: skip
OWN_USER = {
    "devices", "invisible", "mutes", "channel_mutes", "unread_count", "total_unread_count",
    "unread_channels", "unread_threads",
}  # fmt: skip

PROFILES = st.builds(
    Profile,
    name=st.none() | st.text(max_size=9),
    image=st.none() | st.text(max_size=9),
    custom=st.none() | st.dictionaries(st.text(), st.integers()),
    role=st.none() | st.sampled_from(["user", "admin"]),
    teams=st.none() | st.just(("red",)),
    invisible=st.none() | st.booleans(),
    revoked_before=st.none() | st.just(T1),
)


def test_a_profile_has_what_a_user_says_of_itself_and_no_role() -> None:
    said = {
        "id": "x", "name": "John", "image": "j.png", "language": "de", "invisible": True,
        "custom": {"a": 1}, "role": "admin", "teams": ["red"], "revoked_before": 7,
    }  # fmt: skip
    assert users.read_profile(said) == Profile(
        name="John", image="j.png", language="de", invisible=True, custom={"a": 1}
    )
    assert users.read_profile({}) == Profile()


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"name": 7}, "user.name"),
        ({"name": "x" * 1025}, "user.name"),
        ({"image": ["x"]}, "user.image"),
        ({"language": "x" * 33}, "user.language"),
        ({"invisible": 1}, "user.invisible"),
        ({"custom": "x"}, "user.custom"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(said: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=f"^{field} must be"):
        users.read_profile(said, "user")


def test_teams_are_read_each_once() -> None:
    assert users.read_teams({}, "user") is None
    assert users.read_teams({"teams": ["red", "blue", "red"]}, "user") == ("red", "blue")
    assert users.read_teams({"teams": []}, "user") == ()


@pytest.mark.parametrize(
    ("teams", "said"),
    [
        ("red", "user.teams must be a list"),
        (["x"] * 101, "user.teams must be a list of at most 100"),
        (["red", 7], "user.teams[1] must be a string"),
        ([""], "user.teams[0] must be a string"),
        (["x" * 101], "user.teams[0] must be a string of 1 to 100"),
    ],
)
def test_wrong_teams_are_refused_by_name(teams: object, said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        users.read_teams({"teams": teams}, "user")
    assert refusal.value.message.startswith(said)


def test_an_invisible_user_is_told_so() -> None:
    invisible = msgspec.structs.replace(JOHN, invisible=True)
    assert users.own(JOHN)["invisible"] is False
    assert users.own(invisible)["invisible"] is users.full(invisible)["invisible"] is True


def test_a_users_custom_is_bounded() -> None:
    with pytest.raises(TooLarge):
        users.read_profile({"custom": {"n": "x" * 6000}})


def test_a_new_user_has_what_is_said_of_it() -> None:
    user = users.changed(None, "john", Profile(name="John", role="admin"), T1)
    assert user == User(id="john", created_at=T1, updated_at=T1, name="John", role="admin")
    with pytest.raises(BadInput):
        users.changed(None, "a b", Profile(), T1)


def test_what_is_not_said_stays() -> None:
    user = users.changed(JOHN, "john", Profile(name="Johnny"), T2)
    assert (user.name, user.image, user.custom) == ("Johnny", "j.png", {"a": 1})
    assert (user.created_at, user.updated_at) == (T1, T2)


@given(PROFILES)
def test_the_same_profile_twice_changes_nothing(profile: Profile) -> None:
    once = users.changed(JOHN, "john", profile, T2)
    assert users.changed(once, "john", profile, T2 + 1) is once


def test_a_response_has_every_field_of_the_specification() -> None:
    assert set(users.response(JOHN)) == USER_RESPONSE
    assert set(users.own(JOHN)) == USER_RESPONSE | OWN_USER
    assert set(users.full(JOHN)) == USER_RESPONSE | OWN_USER | {"shadow_banned"}
    assert users.response(JOHN)["online"] is False
    assert users.own(JOHN)["online"] is True
    assert users.full(JOHN)["online"] is False


def test_in_an_event_a_users_times_are_rfc3339() -> None:
    shown = wire.decode_object(users.encoded(JOHN, online=True))
    assert shown["created_at"] == wire.rfc3339(T1)
    assert shown["updated_at"] == wire.rfc3339(T1)
    assert (shown["online"], shown["custom"]) == (True, {"a": 1})


def test_a_summary_is_what_a_list_of_watchers_shows() -> None:
    assert users.summary(JOHN) == {"id": "john", "name": "John", "image": "j.png"}
