"""The media server that calls run on, where there is one: whose credentials ``joinCall`` hands out.

Pure. The relay carries no media itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay import tokens


class IceServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server that helps two peers to find a way to each other."""

    urls: tuple[str, ...]
    username: str = ""
    password: str = ""


class Media(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a media server is, and what it believes."""

    url: str
    ws_endpoint: str
    secret: str
    edge_name: str = "media"
    token_life: float = 3600.0
    ice_servers: tuple[IceServer, ...] = ()


def read(description: dict[str, Any]) -> Media:
    """Return the media server that a file describes; raises ``ValueError`` naming the field."""
    try:
        media = msgspec.convert(description, Media)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    for name, value in (("url", media.url), ("ws_endpoint", media.ws_endpoint)):
        if not value.startswith(("http://", "https://", "ws://", "wss://")):
            raise ValueError(f"{name} must be an address such as wss://sfu.example/ws")
    if not media.secret:
        raise ValueError("secret must not be empty")
    return media


def credentials(media: Media, user_id: str, cid: str, now: float) -> dict[str, Any]:
    """Return what a client needs to enter a call on the media server, as Stream's SDKs read it."""
    token = tokens.issue(
        media.secret, user_id=user_id, now=now, life_s=media.token_life, call_cids=[cid]
    )
    return {
        "credentials": {
            "server": {
                "edge_name": media.edge_name,
                "url": media.url,
                "ws_endpoint": media.ws_endpoint,
            },
            "token": token,
            "ice_servers": [msgspec.to_builtins(server) for server in media.ice_servers],
        },
        "stats_options": {"reporting_interval_ms": 60_000, "enable_rtc_stats": False},
    }
