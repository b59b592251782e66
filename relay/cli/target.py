"""The relay a command talks to: its address, one kept-alive HTTP connection, and plain answers.

Used by ``send``, ``simulate``, ``hooks`` and ``dead`` (HTTP) and ``watch`` (the address). Standard
library only.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

import click

from relay.settings import Settings

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
"""Addresses a server listens on, and where to reach it from this machine."""


URL_DEFAULT: Final = "http://RELAY_HOST:RELAY_PORT"
"""What ``--help`` says of a relay's address that is not given."""


class Unreachable(click.ClickException):
    """Nobody answered. ``timed_out``: somebody listens, but said nothing in time."""

    exit_code = 1

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Answer(NamedTuple):
    """An HTTP answer: the status, and the body as text."""

    status: int
    text: str

    @property
    def accepted(self) -> bool:
        """Whether it is a success."""
        return 200 <= self.status < 300


def http_url(text: str) -> SplitResult:
    """Return an http or https URL in parts; a parameter's ``type``."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        usable = False
    if not usable:
        raise click.BadParameter(f"{text!r} must be a URL such as http://127.0.0.1:8000")
    return url


def own_url(settings: Settings, path: str = "") -> SplitResult:
    """Return the URL of the relay that runs on this machine with these settings."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    scheme = "https" if settings.tls_cert else "http"
    return urlsplit(f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}{path}")


class Target:
    """One HTTP connection, kept alive between requests and opened again when it was lost."""

    def __init__(self, url: SplitResult, *, timeout_s: float) -> None:
        self._url = url
        secure = url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._http = kind(url.hostname or "", url.port, timeout=timeout_s)

    @property
    def path(self) -> str:
        """The path of the URL, with its query."""
        return f"{self._url.path}?{self._url.query}" if self._url.query else self._url.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a JSON body to a path; raises ``Unreachable``."""
        return self._ask("POST", path, body, {"Content-Type": "application/json", **headers})

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Ask for a path; raises ``Unreachable``."""
        return self._ask("GET", path, None, headers)

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        try:
            self._http.request(method, path, body, dict(headers))
            response = self._http.getresponse()
            return Answer(response.status, response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        where = f"{self._url.scheme}://{self._url.netloc}"
        match error:
            case ConnectionRefusedError():
                return Unreachable(f"nothing listens at {where}: is the relay running there?")
            case TimeoutError():
                return Unreachable(
                    f"{where} did not answer within {self._http.timeout:g} s", timed_out=True
                )
            case ssl.SSLError():
                return Unreachable(f"{where} does not speak TLS that can be trusted: {error}")
            case http.client.HTTPException() | ConnectionError():
                return Unreachable(f"{where} closed the connection or does not speak HTTP")
        return Unreachable(f"{where} cannot be reached: {error}")
