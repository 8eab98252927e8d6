"""Limits how many uploads or delayed answers there are at once, in all and for one client."""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class ClientPlaces:
    """Counts who holds a place now; it remembers nobody else."""

    def __init__(self, most: int, of_client: int) -> None:
        """There are `most` places, of which one client may hold `of_client`."""
        self.most = most
        self.of_client = of_client
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many places are held now."""
        return self._held.total()

    @property
    def full(self) -> bool:
        """True while no place is free."""
        return self.held >= self.most

    def at_limit(self, client: str) -> bool:
        """Tell whether a client holds as many as one may."""
        return self._held[client] >= self.of_client

    @contextmanager
    def hold(self, client: str) -> Iterator[None]:
        """Hold one place more while the context lasts, whether there is one or not."""
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]


def address_group(address: str | None) -> str:
    """Return the key to count by: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if parsed.version == 4:  # noqa: PLR2004
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
