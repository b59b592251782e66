"""The relay on Redis: broker, store, inbox and outbox, for any number of processes on one Redis.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox, outbox = RedisStore(broker), RedisInbox(broker), RedisOutbox(broker)

The broker connects in ``start``; the others work from then on. Close inbox and outbox first.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_outbox import RedisOutbox
from relay.broker.redis_store import RedisStore

__all__ = ["RedisBroker", "RedisInbox", "RedisOutbox", "RedisStore"]
