"""The gateway: sockets, their sessions, and the hub that writes publications to them.

``connection`` is the I/O, ``session`` the conversation, ``hub`` the fan-out; ``sockets`` knows
every open socket of this process.
"""
