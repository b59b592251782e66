"""The relay on Redis, for any number of processes: the broker, and what else is kept there.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox, outbox = RedisStore(broker), RedisInbox(broker), RedisOutbox(broker)
    sessions, tickets = RedisSessions(broker), RedisTickets(broker)

The broker connects in ``start``; the others work from then on, and are closed before it.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_outbox import RedisOutbox
from relay.broker.redis_sessions import RedisSessions
from relay.broker.redis_store import RedisStore
from relay.broker.redis_tickets import RedisTickets

__all__ = [
    "RedisBroker", "RedisInbox", "RedisOutbox", "RedisSessions", "RedisStore", "RedisTickets",
]  # fmt: skip
