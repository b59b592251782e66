"""What is logged, and what never is."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

SPEAKERS: Final = """
import logging
from relay import logs
logs.configure({level!r}, "json")
for speaker in ("relay.gateway", "botocore.auth", "uvicorn.error", "websockets.server", "asyncio"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(speaker), level)(f"{{speaker}} says {{level}}")
logs.get("relay.hub").debug("a fact", of="ours")
"""

SIGNING: Final = """
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from relay import logs
logs.configure("debug", "json")
request = AWSRequest("POST", "https://sqs.eu-west-1.amazonaws.com/", data="a payload")
SigV4Auth(Credentials("key", "a secret", "a session token"), "sqs", "eu-west-1").add_auth(request)
assert request.headers["X-Amz-Security-Token"] == "a session token"
"""


def logged(script: str) -> str:
    """Return what a process of its own logs: how it logs is a matter of the whole process."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stderr


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [
        ("debug", ["debug", "info", "warning", "error"], ["warning", "error"]),
        ("info", ["info", "warning", "error"], ["warning", "error"]),
        ("warning", ["warning", "error"], ["warning", "error"]),
        ("error", ["error"], ["error"]),
    ],
)
def test_the_level_is_the_relays_own_and_libraries_are_heard_from_warning_on(
    level: str, ours: list[str], others: list[str]
) -> None:
    log = logged(SPEAKERS.format(level=level))
    for speaker in ("relay.gateway", "botocore.auth", "uvicorn.error", "websockets.server"):
        heard = [
            word
            for word in ("debug", "info", "warning", "error")
            if f"{speaker} says {word}" in log
        ]
        assert heard == (ours if speaker.startswith("relay") else others)
    assert ("a fact" in log) == (level == "debug")


def test_a_request_to_aws_is_not_logged_at_any_level() -> None:
    assert logged(SIGNING) == ""
