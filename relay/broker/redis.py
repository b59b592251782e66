"""The relay on Redis, for any number of processes: broker, store, inbox, sessions and outbox.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox = RedisStore(broker), RedisInbox(broker)
    sessions, outbox = RedisSessions(broker), RedisOutbox(broker)

The broker connects in ``start``; the others work from then on, and are closed before it.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_outbox import RedisOutbox
from relay.broker.redis_sessions import RedisSessions
from relay.broker.redis_store import RedisStore

__all__ = ["RedisBroker", "RedisInbox", "RedisOutbox", "RedisSessions", "RedisStore"]
