"""Ports that stay free until somebody listens on them."""

import secrets
import socket

FIRST, LAST = 20000, 32000
"""Below the range that the kernel takes the other end of a connection from: a port of that range
may be somebody's before a server that was ended and started again has it back."""


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    while True:
        port = secrets.choice(range(FIRST, LAST))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
