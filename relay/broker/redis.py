"""The relay on Redis: broker, store, inbox, sessions and tickets, for any number of processes.

    broker = RedisBroker(url, prefix, limits, node)
    store, inbox, sessions = RedisStore(broker), RedisInbox(broker), RedisSessions(broker)
    tickets = RedisTickets(broker)

The broker connects in ``start``; the others work from then on, and are closed before it.
"""

from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_inbox import RedisInbox
from relay.broker.redis_sessions import RedisSessions
from relay.broker.redis_store import RedisStore
from relay.broker.redis_tickets import RedisTickets

__all__ = ["RedisBroker", "RedisInbox", "RedisSessions", "RedisStore", "RedisTickets"]
