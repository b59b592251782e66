"""The relay on Redis: broker, store, inbox and sessions, for any number of processes on one Redis.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox, sessions = RedisStore(broker), RedisInbox(broker), RedisSessions(broker)

The broker connects in ``start``; the others work from then on, and are closed before it.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_sessions import RedisSessions
from relay.broker.redis_store import RedisStore

__all__ = ["RedisBroker", "RedisInbox", "RedisSessions", "RedisStore"]
