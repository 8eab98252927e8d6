"""Which addresses belong to the network namespace that this process is in."""

import ipaddress
import socket

_IPV4 = 4


def is_own(address: str) -> bool:
    """Tell whether an IP address belongs to this process's network namespace.

    A socket can be bound to no other. (With Linux's `ip_nonlocal_bind` it can, and every address
    counts as own.)
    """
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return False
    family = socket.AF_INET if version == _IPV4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
