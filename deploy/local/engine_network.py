"""The network of one private Docker engine: its address block, its bridges, its packet rules.

Several engines share one network namespace, so each gets a block of its own out of 10.0.0.0/8.
The lower half of the block is for the engine's default bridge, the upper half for the networks that
its users create. So everything with an address in the block belongs to this engine. That is known
even after the engine has crashed and does not answer any more.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import subprocess
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from deploy.local.errors import CannotProvide, StackError
from deploy.local.packages import ENGINE, explain, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

_REALM = ipaddress.IPv4Network("10.160.0.0/11")
_BLOCK = 20
_TABLES = ("filter", "nat")


@dataclass(frozen=True)
class EngineNetwork:
    """`bridge` is the name of the default bridge, at most 15 characters; `block` is a /20."""

    bridge: str
    block: ipaddress.IPv4Network

    @classmethod
    def found(cls, bridge: str) -> EngineNetwork | None:
        """Return the network whose default bridge exists; None if there is no such bridge."""
        for name, address in _addresses():
            if name == bridge:
                return cls(bridge, ipaddress.IPv4Network(f"{address}/{_BLOCK}", strict=False))
        return None

    @property
    def pool(self) -> ipaddress.IPv4Network:
        """The part of the block out of which the engine gives networks to its users."""
        return list(self.block.subnets(prefixlen_diff=1))[1]

    @property
    def gateway(self) -> ipaddress.IPv4Interface:
        """Address of the default bridge."""
        lowest = next(self.block.subnets(new_prefix=24))
        return ipaddress.IPv4Interface(f"{lowest[1]}/24")

    def create(self) -> None:
        """Create the default bridge, unless it exists."""
        if self.bridge not in self._bridges():
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("address", "add", str(self.gateway), "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def remove(self) -> None:
        """Delete the bridges in the block and all packet rules that name them.

        Without the default bridge it deletes nothing: the block of a stopped engine is free, and
        another engine may use it by now.
        """
        bridges = self._bridges()
        if self.bridge not in bridges:
            return
        for table in _TABLES:
            for rule in _rules(table):
                if any(word in bridges or self._holds(word) for word in rule):
                    _run("iptables", "-w", "-t", table, "-D", *rule[1:])
        for bridge in bridges:
            _ip("link", "delete", bridge)

    def _holds(self, word: str) -> bool:
        """Tell whether a word of a packet rule is an address or a network in our block."""
        try:
            return ipaddress.IPv4Network(word).subnet_of(self.block)
        except ValueError:
            return False

    def _bridges(self) -> set[str]:
        return {name for name, address in _addresses() if address in self.block}


def free_block() -> ipaddress.IPv4Network:
    """Find a block that no address and no route of this machine touches."""
    taken = [ipaddress.IPv4Network(f"{address}/32") for _, address in _addresses()]
    taken += _routes()
    for block in _REALM.subnets(new_prefix=_BLOCK):
        if not any(block.overlaps(other) for other in taken):
            return block
    message = f"every address block of {_REALM} is in use on this machine"
    raise StackError(message)


def is_free(block: ipaddress.IPv4Network) -> bool:
    """Tell whether no address and no route of this machine touches the block."""
    addresses = (address in block for _, address in _addresses())
    routes = (block.overlaps(route) for route in _routes())
    return not any(chain(addresses, routes))


def _addresses() -> Iterator[tuple[str, ipaddress.IPv4Address]]:
    for link in json.loads(_ip("-json", "-4", "address") or "[]"):
        for address in link.get("addr_info", []):
            yield link["ifname"], ipaddress.IPv4Address(address["local"])


def _routes() -> list[ipaddress.IPv4Network]:
    routes: list[dict[str, Any]] = json.loads(_ip("-json", "-4", "route") or "[]")
    destinations = [route["dst"] for route in routes if route["dst"] != "default"]
    return [ipaddress.IPv4Network(destination, strict=False) for destination in destinations]


def _rules(table: str) -> list[list[str]]:
    """List the table's appended rules, each as the words that made it."""
    listed = _run("iptables", "-w", "-t", table, "-S").splitlines()
    return [shlex.split(line) for line in listed if line.startswith("-A ")]


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(program: str, *arguments: str) -> str:
    found = find_program(program)
    if found is None:
        raise CannotProvide(explain(ENGINE))
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"{program} {' '.join(arguments)}: {done.stderr.strip()}"
        raise StackError(message)
    return done.stdout
