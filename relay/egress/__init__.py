"""Deliveries out: what is owed to hooks, tried by sinks under the retry table."""

from relay.egress.any_sink import AnySink, has_aws
from relay.egress.dispatcher import Dispatcher
from relay.egress.lane import Bounds

__all__ = ["AnySink", "Bounds", "Dispatcher", "has_aws"]
