"""Deliveries out: what is owed to hooks, tried by sinks under the retry table."""

from relay.egress.any_sink import AnySink, has_aws

__all__ = ["AnySink", "has_aws"]
