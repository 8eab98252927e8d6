"""Addresses to listen on, as operators write them."""

OFF = "off"
MAX_PORT = 65_535


def parse_address(address: str) -> tuple[str, int] | None:
    """Return host and port of `HOST:PORT`, null for `off`; raises `ValueError`.

    An IPv6 address is written in brackets. Port 0 takes a free one.
    """
    if address == OFF:
        return None
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdecimal() or int(port) > MAX_PORT:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9181, or off")
    return host, int(port)
