"""The doors for backends: signed webhooks over HTTP, and Redis.

``webhooks.routes`` is composed by ``app`` with the sources that ``load_sources`` read; ``LiveDoor``
and ``IngestDoor`` take what a broker's live channel and inbox bring.
"""

from relay.ingress.redis_door import IngestDoor, LiveDoor
from relay.ingress.sources import Source
from relay.ingress.sources_file import load_sources

__all__ = ["IngestDoor", "LiveDoor", "Source", "load_sources"]
