"""Free loopback ports for servers that are stopped and started again on the same port."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_WIDTH = 12_000
_ATTEMPTS = 200
_given: set[int] = set()


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Tell whether somebody listens on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def free_port() -> int:
    """Find a port that is free now and that no outgoing connection will be given.

    It lies below the ephemeral range. Inside of that range, a client that keeps connecting to the
    port of a stopped server sooner or later gets this port as its own, connects to itself, and the
    server cannot come back. No port is returned twice, because the first caller may not listen yet.
    """
    lowest = _lowest_ephemeral()
    for _ in range(_ATTEMPTS):
        port = random.randrange(max(1024, lowest - _WIDTH), lowest)  # noqa: S311
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    message = f"no free loopback port below {lowest}"
    raise OSError(message)


def _lowest_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except OSError:
        return 32_768
