"""RELAY_REDIS_URL: every shape, and what is none."""

from __future__ import annotations

import pytest

from relay.broker.redis_url import Place, Shape
from relay.settings import SettingsError


def hosts(place: Place) -> list[tuple[str, int]]:
    return [(address.host, address.port) for address in place.addresses]


def test_one_server() -> None:
    place = Place.parse("redis://ann:p%40ss@h:7000/3")
    assert (place.shape, hosts(place), str(place)) == (Shape.SINGLE, [("h", 7000)], "h:7000")
    assert (place.login.username, place.login.password, place.login.db) == ("ann", "p@ss", 3)


def test_sentinels_have_their_own_login_and_port() -> None:
    place = Place.parse(
        "redis+sentinel://ann:secret@a:1,b,[::1]:3/main/2?sentinel_username=s&sentinel_password=%2Bp"
    )
    assert place.shape is Shape.SENTINEL
    assert hosts(place) == [("a", 1), ("b", 26379), ("::1", 3)]
    assert {(a.username, a.password, a.db) for a in place.addresses} == {("s", "+p", 0)}
    assert (place.primary, place.login.username, place.login.db) == ("main", "ann", 2)
    assert str(place) == "main of a:1,b:26379,::1:3"
    assert "sentinel" not in place.url


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    place = Place.parse("redis+cluster://:secret@a:1,b:2")
    assert (place.shape, hosts(place)) == (Shape.CLUSTER, [("a", 1), ("b", 2)])
    assert {address.password for address in place.addresses} == {"secret"}


@pytest.mark.parametrize(
    "url",
    ["rediss://h", "redis+tls://h", "valkeys://h", "rediss+sentinel://h/main",
     "redis+sentinel+tls://h/main", "redis+cluster+tls://h", "valkey+cluster+tls://h"],
)  # fmt: skip
def test_tls_has_two_spellings(url: str) -> None:
    place = Place.parse(url)
    assert place.login.tls is not None
    assert all(address.tls is not None for address in place.addresses)


@pytest.mark.parametrize("url", ["valkey://h:1/2", "valkey+cluster://h:1", "redis+cluster://h:1"])
def test_valkey_is_redis(url: str) -> None:
    assert hosts(Place.parse(url)) == [("h", 1)]
    assert Place.parse(url).login.tls is None


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://a:1", "redis+sentinel:///main", "redis://a,b", "redis+cluster://a,,b",
     "redis+cluster+sentinel://a/x", "redis+ssl://a", "memcached://a", "redis+cluster://a:x", "",
     "redis+sentinel://:hush@a:b/main", "redis+cluster://:hu/sh@a"],
)  # fmt: skip
def test_what_is_none_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(SettingsError, match="RELAY_REDIS_URL must be") as refused:
        Place.parse(url)
    assert "hu" not in str(refused.value)


def test_a_cluster_has_one_database() -> None:
    with pytest.raises(SettingsError, match="has only 0"):
        Place.parse("redis+cluster://a/3")
