"""The doors for backends: signed webhooks over HTTP, Redis, and a queue of SQS.

``webhooks.routes`` is composed by ``app`` with the sources that ``load_sources`` read; ``LiveDoor``
and ``IngestDoor`` take what a broker's live channel and inbox bring, ``SqsDoor`` what is in the
queue of ``open_queue``.
"""

import importlib.util

from relay.backends import Bounds
from relay.ingress.redis_door import IngestDoor, LiveDoor
from relay.ingress.sources import Source
from relay.ingress.sources_file import load_sources
from relay.ingress.sqs_door import (
    Queue,
    SqsDoor,
    check_retention,
    queue_reader,
    redrive_warning,
)
from relay.settings import Settings, SettingsError

__all__ = [
    "Bounds", "IngestDoor", "LiveDoor", "Queue", "Source", "SqsDoor", "check_retention",
    "load_sources", "open_queue", "queue_reader", "redrive_warning",
]  # fmt: skip


def open_queue(settings: Settings) -> Queue:
    """Return the queue that the settings name; raises ``SettingsError`` without the library."""
    if importlib.util.find_spec("aiobotocore") is None:
        raise SettingsError(
            "RELAY_INGEST_SQS_URL needs the package aiobotocore: install relay[aws]"
        )
    from relay.ingress.sqs import SqsQueue  # large: most relays never load it

    return SqsQueue(settings)
