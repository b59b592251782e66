"""docs/operations.md lists every metric, every end of a socket, and the defaults as they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from relay import metrics
from relay.errors import Close, TooLarge, Unavailable
from relay.http import BODY_TIMEOUT_S
from relay.http_edge import HEAD_MAX_BYTES
from relay.settings import Settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()
DELIVERY = (ROOT / "docs/delivery.md").read_text()
README = (ROOT / "README.md").read_text()
GATEWAY = "\n".join(path.read_text() for path in (ROOT / "relay/gateway").glob("*.py"))


def rows(section: str, page: str = PAGE) -> list[list[str]]:
    """Return the cells of a section's first table."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]


def known_metrics() -> dict[str, set[str]]:
    """Return the names of all metrics, each with its labels."""
    known = {}
    for value in vars(metrics).values():
        if isinstance(value, Counter | Gauge | Histogram):
            name = f"{value._name}_total" if isinstance(value, Counter) else value._name
            known[name] = set(value._labelnames)
    return known


def test_every_metric_is_listed_with_its_labels_and_no_other() -> None:
    listed = {
        name: set(re.findall(r"`(\w+)`", row[1]))
        for row in (*rows("Metrics"), *rows("For operators", DELIVERY))
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert listed == known_metrics()


def test_alerts_are_about_metrics_that_there_are() -> None:
    known = known_metrics()
    used = [
        (name, label)
        for row in rows("Alerts")
        for name, labels in re.findall(r"(relay_\w+)(?:\{([^}]*)\})?", row[1])
        for label in ["", *re.findall(r"(\w+)!?=", labels)]
    ]
    assert len(used) > 20
    assert [(name, label) for name, label in used if name not in known] == []
    assert [(name, label) for name, label in used if label and label not in known[name]] == []


NO_ALARM = {
    "draining": "the process is stopping",
    "queue_unavailable": "of no request: /readyz warns of it",
}
"""Reasons of an ``Unavailable`` for which nobody has to be woken."""


def unavailable_reasons() -> Iterator[str]:
    """Return every ``reason`` that the source gives to an ``Unavailable``."""
    yield Unavailable.reason
    for path in (ROOT / "relay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("Unavailable", ".fail")
            ):
                for given in node.keywords:
                    if given.arg == "reason" and isinstance(given.value, ast.Constant):
                        yield str(given.value.value)


def test_every_reason_to_refuse_what_is_no_sender_s_fault_has_an_alert() -> None:
    reasons = set(unavailable_reasons())
    assert {"unavailable", "redis_out_of_memory", "replicas_short"} <= reasons
    alerts = " ".join(row[1] for row in rows("Alerts"))
    matched = re.findall(r'relay_refused_total\{reason=~?"([^"]+)"', alerts)
    missed = {r for r in reasons if not any(re.fullmatch(each, r) for each in matched)}
    assert missed == NO_ALARM.keys()


def test_each_promise_has_an_alert() -> None:
    [text] = re.findall(r"^## What it promises\n(.*?)^With", README, re.DOTALL | re.MULTILINE)
    promises = [words.rstrip(".") for words in re.findall(r"^\* \*(.*?)\*", text, re.MULTILINE)]
    assert len(promises) == 5
    alerts = {row[0]: row[1] for row in rows("Alerts") if row[0]}
    assert [promise for promise in promises if "relay_" not in alerts.get(promise, "")] == []


def test_every_why_of_a_closed_socket_is_listed() -> None:
    spoken = set(re.findall(r'(?:abort\(|_count_end\(|end\(\n?.*, )"([a-z_0-9]+)"\)', GATEWAY))
    spoken |= set(re.findall(r'1\d{3}: "([a-z_0-9]+)"', GATEWAY))
    spoken |= set(re.findall(r'End\(Close\.\w+, .*, "([a-z_]+)"\)', GATEWAY))
    assert {"slow", "flood", "drained", "left", "too_big", "token_expired"} <= spoken
    listed = {row[0].strip("`"): row[1] for row in rows("How sockets end")}
    assert spoken <= listed.keys()
    assert Unavailable.reason in listed
    codes = {int(code) for code in listed.values() if code.isdigit()}
    assert codes == {int(code) for code in Close}


def test_the_limits_are_the_settings() -> None:
    settings = Settings()
    for what, names, default, _ in rows("Limits and sizing"):
        if names:
            fields = [name.strip("` ").removeprefix("RELAY_").lower() for name in names.split(",")]
            values = ", ".join(f"{getattr(settings, field):.15g}" for field in fields)
            assert default == values, what
    others = {row[0]: row[2] for row in rows("Limits and sizing") if not row[1]}
    assert others["size of a request's head"] == str(HEAD_MAX_BYTES)
    assert others["time for a body"] == f"{BODY_TIMEOUT_S:g}"
    assert TooLarge.status == 413
