"""The file that ``RELAY_MEDIA`` names: the media server that calls run on, as TOML.

url = "https://sfu.example"
ws_endpoint = "wss://sfu.example/ws"
secret = "…"                          # signs the tokens that the server checks (HS256)
edge_name = "sfu-1"                   # optional
token_life = 3600                     # seconds, optional
ice_servers = [{ urls = ["stun:sfu.example:3478"], username = "", password = "" }]  # optional
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from relay import media
from relay.media import Media
from relay.settings import SettingsError


def load_media(path: str) -> Media | None:
    """Return the media server, None without a file; raises ``SettingsError`` naming the mistake."""
    if not path:
        return None
    try:
        return media.read(tomllib.loads(Path(path).read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise SettingsError(f"RELAY_MEDIA={path!r} cannot be used: {error}") from None
