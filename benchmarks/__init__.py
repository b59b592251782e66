"""Measure the relay from outside, as a real process, beside a bare C loop in the same run.

``python -m benchmarks`` prints the environment and one table. Nothing here imports the relay: it is
started by its command line and spoken to over its documented doors. README.md says how to read it.
"""
