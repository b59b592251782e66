"""Reading the fields of a hook's description: each is right, or refused by its path.

Pure. A reader takes a value, its path and what an absent or null value means. Used by ``hooks``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from relay import addresses
from relay.errors import BadInput
from relay.events import check_event_type
from relay.forwarded import Network

Reader = Callable[[object, str, Any], Any]
Word = TypeVar("Word", bound=StrEnum)

REDACTED: Final = "********"
"""What is shown in place of a secret."""

MOST_EVENT_TYPES: Final = 200
MOST_LATER_ATTEMPTS: Final = 20
LATER_WAIT_S: Final = range(60, 86_401)
LONGEST_TEXT: Final = 2048

_TEXT: Final = re.compile(r"[\x21-\x7e]*")
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}")
_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\x21-\x7e]{1,512}")
_TOPIC: Final = re.compile(
    r"arn:aws[a-z-]*:sns:(?P<region>[a-z0-9-]+):[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?"
)
_AWS_QUEUE: Final = re.compile(
    r"(?:sqs\.)?(?P<region>[a-z]{2}(?:-[a-z]+)+-[0-9]+)\.(?:queue\.)?amazonaws\.com(?:\.cn)?"
)
_AWS_PRIVATE_QUEUE: Final = re.compile(
    r".+\.sqs\.(?P<region>[a-z0-9-]+)\.vpce\.amazonaws\.com(?:\.cn)?"
)

_FLAT: Final = {
    "webhook_url": "webhook",
    "webhook_events": "webhook",
    "sqs_url": "sqs",
    "sqs_key": "sqs",
    "sqs_secret": "sqs",
    "sns_topic_arn": "sns",
    "sns_key": "sns",
    "sns_secret": "sns",
}
"""Stream's older fields of the app, each of which made one hook."""

_UNSUPPORTED: Final = (
    "callback", "failover_config", "sns_event_based_message_group_id_enabled",
)  # fmt: skip
"""Fields of Stream's hooks that would change what is delivered."""


# -- the shape of a request ---------------------------------------------------------------------


def refuse_flat(body: Mapping[str, Any]) -> None:
    """Raise ``BadInput`` when a request sets one of the older fields of the app."""
    for name, kind in _FLAT.items():
        if body.get(name):
            raise BadInput(
                f"{name} is not supported: list a hook of hook_type {kind!r} in event_hooks instead"
            )


def entries(value: object, name: str, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a list with its path."""
    if not isinstance(value, list):
        raise BadInput(f"{name} must be a list of hooks")
    if len(value) > most:
        raise BadInput(f"{name} has {len(value)} entries, at most {most} are possible")
    for place, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadInput(f"{name}[{place}] must be a JSON object")
        yield f"{name}[{place}]", entry


def refuse_unknown(entry: Mapping[str, Any], path: str, known: Collection[str]) -> None:
    """Raise ``BadInput`` for a field that a hook does not have, with the nearest that it has."""
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "it has no such field"
            raise BadInput(f"{path}.{name[:64]} is not a field of a hook: {hint}")


def refuse_unsupported(entry: Mapping[str, Any], path: str) -> None:
    """Raise ``BadInput`` when an entry wants what the relay does not do."""
    for name in _UNSUPPORTED:
        if entry.get(name):
            raise BadInput(f"{path}.{name} is not supported")


# -- readers ------------------------------------------------------------------------------------


def boolean(value: object, path: str, default: bool) -> bool:
    """Read true or false."""
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise BadInput(f"{path} must be true or false")


def boolean_or_none(value: object, path: str, _: object) -> bool | None:
    """Read true, false or null, which is a value of its own."""
    return None if value is None else boolean(value, path, False)


def whole(lowest: int, highest: int, unit: str) -> Reader:
    """Return a reader of a whole number."""

    def read(value: object, path: str, default: Any) -> Any:
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise BadInput(f"{path} must be {lowest} to {highest} {unit}")

    return read


def text(value: object, path: str, default: str) -> str:
    """Read a string of printable ASCII characters."""
    if value is None:
        return default
    if isinstance(value, str) and len(value) <= LONGEST_TEXT and _TEXT.fullmatch(value):
        return value
    raise BadInput(
        f"{path} must be a string of at most {LONGEST_TEXT} printable ASCII characters "
        "without spaces"
    )


def hook_id(value: object, path: str) -> str:
    """Read the name that a file gives to a hook."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise BadInput(f"{path} must be 1 to 64 letters, digits, '_', '-' and '.'")


def word(value: object, path: str, kind: type[Word]) -> Word:
    """Read one word of ``kind``."""
    words = [str(member) for member in kind]
    if isinstance(value, str) and value in words:
        return kind(value)
    raise BadInput(f"{path} must be {', '.join(map(repr, words[:-1]))} or {words[-1]!r}")


def product(value: object, path: str, default: str) -> str:
    """Read Stream's name of a product: events of calls are ``video``."""
    if value in (None, ""):
        return default
    if value in ("video", "all"):
        return str(value)
    raise BadInput(f"{path} must be 'video' or 'all': the relay has no events of other products")


def event_types(value: object, path: str, _: object) -> tuple[str, ...]:
    """Read a list of events' types; an empty one stands for every type, future ones too."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_EVENT_TYPES:
        raise BadInput(
            f"{path} must be a list of at most {MOST_EVENT_TYPES} types; empty means every type"
        )
    types = [check_event_type(item, f"{path}[{place}]") for place, item in enumerate(value)]
    return tuple(dict.fromkeys(types))


def retry_schedule(value: object, path: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Read a list of waits in seconds."""
    if value is None:
        return default
    if not isinstance(value, list) or len(value) > MOST_LATER_ATTEMPTS:
        raise BadInput(f"{path} must be a list of at most {MOST_LATER_ATTEMPTS} waits in seconds")
    read = whole(LATER_WAIT_S[0], LATER_WAIT_S[-1], "seconds")
    return tuple(read(item or 0, f"{path}[{place}]", 0) for place, item in enumerate(value))


def matching(pattern: re.Pattern[str], example: str) -> Reader:
    """Return a reader of a string of one form; an empty one counts as absent."""

    def read(value: object, path: str, default: Any) -> Any:
        if value in (None, ""):
            return default
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise BadInput(f"{path} must be {example}")

    return read


region: Final = matching(_REGION, "an AWS region such as 'eu-central-1'")
role_arn: Final = matching(_ROLE, "a role such as 'arn:aws:iam::123456789012:role/relay'")


# -- addresses ----------------------------------------------------------------------------------


def check_url(value: str, path: str, networks: Sequence[Network] | None) -> SplitResult:
    """Return the parts of a URL that the relay may send to; raises ``BadInput`` for any other.

    ``networks`` are those that may be reached although they are not public; with None the address
    is not looked at.
    """
    if not value:
        raise BadInput(f"{path} is missing")
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        usable = False
    if not usable:
        raise BadInput(f"{path} must be a URL such as https://app.example/events")
    if "@" in url.netloc:
        raise BadInput(f"{path} must not hold a user or a password: deliveries are signed instead")
    if url.fragment or "\\" in value:
        raise BadInput(f"{path} must not hold '#' or a backslash")
    why = addresses.refusal(url.hostname or "", networks or ())
    if networks is not None and why is not None:
        raise BadInput(f"{path}: {why}", reason="closed_address")
    return url


def region_of_queue(url: str) -> str:
    """Return the region in the URL of an AWS queue; any will do for another's."""
    host = urlsplit(url).hostname or ""
    found = _AWS_QUEUE.fullmatch(host) or _AWS_PRIVATE_QUEUE.fullmatch(host)
    return found["region"] if found else "us-east-1"


def endpoint_of_queue(url: str) -> str:
    """Return where a queue is asked for: '' for AWS's own address, else the queue URL's server."""
    parts = urlsplit(url)
    if _AWS_QUEUE.fullmatch(parts.hostname or ""):
        return ""
    return f"{parts.scheme}://{parts.netloc}"


def region_of_topic(arn: str, path: str) -> str:
    """Return the region of a topic's ARN; raises ``BadInput`` when it is none."""
    if not arn:
        raise BadInput(f"{path} is missing")
    found = _TOPIC.fullmatch(arn)
    if not found:
        raise BadInput(f"{path} must be a topic such as 'arn:aws:sns:us-east-1:123456789012:calls'")
    return found["region"]
