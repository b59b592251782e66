"""Read the transcripts of docs/protocol.md and match frames against their lines.

Pure. The language is explained on the page itself, under "Transcripts".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

Names = dict[str, Any]

_BLOCK = re.compile(
    r"^```transcript *(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)
_LINE = re.compile(r"(?P<actor>\w+) (?P<arrow>[→←]) (?:(?P<times>\d+) × )?(?P<text>.*)")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|…|<[^<>"]+>|.', re.DOTALL)
_NAME = re.compile(r"<([^<>]+)>")
_BARE = "\0"
"""Marks what stood outside of quotes: ``…`` or a name there stands for a value of any type."""
_REST = "\0rest"


@dataclass(frozen=True)
class Line:
    """What one actor sends (``→``) or receives (``←``); ``number`` is the line's in the page."""

    number: int
    actor: str
    sends: bool
    times: int
    text: str


@dataclass(frozen=True)
class Transcript:
    """One block. ``settings`` are the relay's, ``flags`` the words without a value."""

    number: int
    settings: dict[str, str]
    flags: frozenset[str]
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return f"line {self.number}"


def read(page: str) -> list[Transcript]:
    """Return the transcripts of a page; raises ``ValueError`` for a line that is none."""
    return [_transcript(page, block) for block in _BLOCK.finditer(page)]


def _transcript(page: str, block: re.Match[str]) -> Transcript:
    first = page.count("\n", 0, block.start()) + 1
    words = block["info"].split()
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    lines = [_line(first + index, text) for index, text in enumerate(block["body"].splitlines(), 1)]
    flags = frozenset(word for word in words if "=" not in word)
    return Transcript(first, settings, flags, tuple(lines))


def _line(number: int, text: str) -> Line:
    found = _LINE.fullmatch(text)
    if found is None:
        raise ValueError(f"line {number} of the page is no line of a transcript: {text}")
    times = int(found["times"] or 1)
    return Line(number, found["actor"], found["arrow"] == "→", times, found["text"])


# -- matching -----------------------------------------------------------------------------------


def pattern(text: str) -> Any:
    """Return the JSON of a line, its ``…`` and bare names marked."""
    return json.loads("".join(_marked(text)), strict=False)


def _marked(text: str) -> Iterator[str]:
    before = ""
    for token in _TOKEN.findall(text):
        if token == "…":
            yield json.dumps(_BARE + "…") if before in (":", "[") else f'"{_escaped(_REST)}":0'
        elif token.startswith("<"):
            yield json.dumps(_BARE + token)
        else:
            yield token
        before = token if token.strip() else before


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def mismatch(wanted: Any, given: Any, names: Names, path: str = "$") -> str | None:
    """Return what is wrong with ``given``, None when it matches; binds new names in ``names``."""
    if isinstance(wanted, str):
        return _text_mismatch(wanted, given, names, path)
    if isinstance(wanted, dict) and isinstance(given, dict):
        return _object_mismatch(wanted, given, names, path)
    if isinstance(wanted, list) and isinstance(given, list):
        return _array_mismatch(wanted, given, names, path)
    same = type(wanted) is type(given) and wanted == given
    return None if same else f"{path}: wanted {wanted!r}, got {given!r}"


def _object_mismatch(wanted: Any, given: Any, names: Names, path: str) -> str | None:
    members = {key: value for key, value in wanted.items() if key != _REST}
    if missing := members.keys() - given.keys():
        return f"{path}: without {sorted(missing)}"
    extra = given.keys() - members.keys()
    if extra and _REST not in wanted:
        return f"{path}: with {sorted(extra)}"
    for key, value in members.items():
        if wrong := mismatch(value, given[key], names, f"{path}.{key}"):
            return wrong
    return None


def _array_mismatch(wanted: Any, given: Any, names: Names, path: str) -> str | None:
    if wanted == [_BARE + "…"]:
        return None
    if len(wanted) != len(given):
        return f"{path}: wanted {len(wanted)} items, got {len(given)}"
    for index, value in enumerate(wanted):
        if wrong := mismatch(value, given[index], names, f"{path}[{index}]"):
            return wrong
    return None


def _text_mismatch(wanted: str, given: Any, names: Names, path: str) -> str | None:
    if wanted == _BARE + "…":
        return None
    if wanted.startswith(_BARE):
        bound = names.setdefault(wanted[2:-1], given)
        return None if bound == given else f"{path}: wanted {bound!r}, got {given!r}"
    if not isinstance(given, str):
        return f"{path}: wanted text, got {given!r}"
    unbound: dict[str, str] = {}
    found = re.fullmatch(_as_regex(wanted, names, unbound), given, re.DOTALL)
    if found is None:
        return f"{path}: wanted {filled(wanted, names)!r}, got {given!r}"
    names.update({name: found[group] for name, group in unbound.items()})
    return None


def _as_regex(wanted: str, names: Names, unbound: dict[str, str]) -> str:
    parts: list[str] = []
    for part in re.split(r"(…|<[^<>]+>)", wanted):
        if part == "…":
            parts.append(".*")
        elif _NAME.fullmatch(part) and (name := part[1:-1]) in names:
            parts.append(re.escape(str(names[name])))
        elif _NAME.fullmatch(part) and name not in unbound:
            unbound[name] = f"g{len(unbound)}"
            parts.append(f"(?P<{unbound[name]}>.+)")
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def filled(text: str, names: Names) -> str:
    """Return ``text`` with the names that are known replaced by their values."""
    return _NAME.sub(lambda found: str(names.get(found[1], found[0])), text)
