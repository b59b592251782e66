"""Deliveries out: what is owed to hooks, tried by sinks under the retry table."""
