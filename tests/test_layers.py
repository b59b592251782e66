"""The shape of the package: who may import whom, and which module is the home of which library.

Read from the sources, so an import inside a function or for types counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

LAYERS: Final = (
    {"errors", "logs", "metrics", "ports", "stopping"},
    {
        "wire",
        "events",
        "tokens",
        "signing",
        "users",
        "calls",
        "filters",
        "retry",
        "forwarded",
        "permissions",
        "media",
        "addresses",
        "backends",
        "hook_fields",
        "hooks",
    },
    {"settings", "tasks", "pace"},
    {"broker", "publisher"},
    # "" is the package, which offers the publishers
    {"", "doors", "announcer", "participants", "registry"},
    {"http"},
    {"gateway", "ingress", "api", "egress"},
    {"app"},
    {"server", "workers", "http_edge", "arrivals"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A module imports from its own layer and from those below."""

EDGES: Final = {"gateway", "ingress", "api", "egress"}
"""They meet in ``app`` only."""

PURE: Final = LAYERS[1]
"""Values and rules: time, ids and randomness come in as arguments."""

HOMES: Final[dict[str, set[str]]] = {
    "aiobotocore": {"egress", "ingress.sqs"},
    "aiohttp": {"egress"},
    "yarl": {"egress"},
    "botocore": {"egress", "ingress.sqs"},
    "click": {"cli"},
    "hiredis": {"broker"},
    "httptools": set(),  # uvicorn's
    "jwt": {"tokens"},
    "prometheus_client": {"metrics"},
    "redis": {"broker", "publisher", "cli.check"},  # the doors to Redis, and their diagnosis
    "starlette": {"http", "ingress", "api", "app"},
    "structlog": {"logs"},
    "tomllib": {"ingress", "api"},
    "uvicorn": {"server", "workers", "http_edge"},
    "uvloop": {"server", "workers"},
    "websockets": {"gateway"},
    "websockets.exceptions": {"gateway", "cli.watch"},
    "websockets.sync": {"cli.watch"},  # a client, not a server
}
"""Third-party library → where it may be imported. ``msgspec`` is a language of values: anywhere."""

EVERYWHERE: Final = {"msgspec"}

IMPURE: Final = {
    "asyncio", "http", "os", "pathlib", "requests", "secrets", "select", "socket", "ssl",
    "subprocess", "threading", "urllib.request", "uuid",
}  # fmt: skip
IMPURE_CALLS: Final = {
    "datetime.now", "datetime.utcnow", "random.random", "time.monotonic", "time.perf_counter",
    "time.sleep", "time.time", "time.time_ns",
}  # fmt: skip

SOURCES: Final = sorted((ROOT / "relay").rglob("*.py"))


def name_of(path: Path) -> str:
    """Return ``gateway.hub`` for relay/gateway/hub.py and ``""`` for the package itself."""
    parts = path.relative_to(ROOT / "relay").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES: Final = {name_of(path): ast.parse(path.read_text()) for path in SOURCES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names a module imports, ``from a import b`` as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """Return the modules of the relay that a module imports."""
    found = set()
    for name in imports(tree):
        if name == "relay" or name.startswith("relay."):
            inside = name.removeprefix("relay").removeprefix(".")
            while inside not in MODULES:
                inside = inside.rpartition(".")[0]
            found.add(inside)
    return found


def at_or_below(name: str, homes: set[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def layer(name: str) -> int:
    top = name.partition(".")[0]
    for height, members in enumerate(LAYERS):
        if top in members:
            return height
    raise AssertionError(f"relay.{top} is in no layer: give it a place in LAYERS")


PAIRS: Final = [
    (name, other) for name, tree in MODULES.items() for other in sorted(own_imports(tree))
]


def is_version(name: str, other: str) -> bool:
    """Whether only ``relay.__version__`` is meant, which stands above every import."""
    if other:
        return False
    taken = {found for found in imports(MODULES[name]) if found in ("relay", "relay.__version__")}
    attributes = {
        node.attr
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "relay"
    }
    return bool(taken) and attributes <= {"__version__"}


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 20
    assert len(PAIRS) > 50


def test_imports_point_down_only() -> None:
    upward = [
        f"relay.{name} imports relay.{other}"
        for name, other in PAIRS
        if layer(other) > layer(name) and not is_version(name, other)
    ]
    assert upward == []


def test_the_edges_do_not_import_each_other() -> None:
    crossing = [
        f"relay.{name} imports relay.{other}"
        for name, other in PAIRS
        if {name.partition(".")[0], other.partition(".")[0]} <= EDGES
        and name.partition(".")[0] != other.partition(".")[0]
    ]
    assert crossing == []


def at_import(tree: ast.Module) -> ast.Module:
    """Return what runs when a module is imported: no functions, nothing that is for types alone."""
    return ast.Module([node for node in tree.body if not _is_for_later(node)], [])


def _is_for_later(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def test_no_import_goes_in_a_circle() -> None:
    """Between packages not even for types or inside functions: that is what layers are for."""
    below = {name: own_imports(at_import(tree)) - {name, ""} for name, tree in MODULES.items()}
    while below:
        free = {name for name, others in below.items() if not others & below.keys()}
        assert free, f"these import each other in a circle: {sorted(below)}"
        below = {name: others for name, others in below.items() if name not in free}


def foreign(tree: ast.Module) -> set[str]:
    """Return what a module imports that is neither Python's nor ours."""
    ours = sys.stdlib_module_names - {"tomllib"} | {"relay", "__future__"}
    return {name for name in imports(tree) if name.partition(".")[0] not in ours}


def homes_of(name: str) -> set[str] | None:
    """Return the homes of the longest known beginning of a dotted name."""
    while name:
        if name in HOMES:
            return HOMES[name]
        name = name.rpartition(".")[0]
    return None


def test_each_library_has_one_home() -> None:
    strays = []
    for name, tree in MODULES.items():
        for library in foreign(tree):
            if library.partition(".")[0] in EVERYWHERE:
                continue
            homes = homes_of(library)
            assert homes is not None, f"{library} (in relay.{name}) has no home: see HOMES"
            if not at_or_below(name, homes):
                strays.append(f"relay.{name} imports {library}")
    assert strays == []


def chains(tree: ast.Module) -> set[str]:
    """Return the ``a.b`` of every attribute that is read from a bare name."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def test_json_is_read_and_written_in_wire_alone() -> None:
    users = {
        name
        for name, tree in MODULES.items()
        if "msgspec.json" in chains(tree)
        or any(found.startswith(("json", "msgspec.json")) for found in imports(tree))
    }
    assert users == {"wire"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.partition(".")[0] in PURE))
def test_values_and_rules_are_pure(name: str) -> None:
    tree = MODULES[name]
    tools = {found for found in imports(tree) if any(at_or_below(found, {tool}) for tool in IMPURE)}
    assert tools == set()
    assert chains(tree) & IMPURE_CALLS == set()
    assert not own_imports(tree) & {"logs", "metrics", "settings", "tasks"}
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


@pytest.mark.parametrize("name", ["gateway.session", "cli.follow", "cli.webhook_bodies"])
def test_these_machines_are_pure_too(name: str) -> None:
    test_values_and_rules_are_pure(name)


def test_files_stay_below_500_lines() -> None:
    folders = (ROOT / folder for folder in ("relay", "benchmarks"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}
