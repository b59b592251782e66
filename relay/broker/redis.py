"""The relay on Redis: broker, store and inbox, for any number of processes on one Redis.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox = RedisStore(broker), RedisInbox(broker)

The broker connects in ``start``; store and inbox work from then on. Close the inbox first.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_store import RedisStore

__all__ = ["RedisBroker", "RedisInbox", "RedisStore"]
