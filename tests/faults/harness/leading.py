"""Which dispatcher leads: the record has the term, and the log of its holder says so."""

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime

from dispatcher.leadership import LEADER_LEASE_S, POLL_S
from modelyard.store.leases import DISPATCHER
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.support.waiting import eventually

TAKEN_OVER_S = LEADER_LEASE_S + 4 * POLL_S
"""Seconds within which a standby leads, on a machine that is busy."""


@dataclass(frozen=True)
class Leading:
    """One dispatcher's term."""

    name: str
    term: int


async def leading(
    fleet: CheckedFleet, *, after: int = 0, within_s: float = TAKEN_OVER_S
) -> Leading:
    """Return who leads, once the term is newer than `after`."""

    async def found() -> Leading | None:
        leases = await fleet.database.all("leases", {"_id": DISPATCHER})
        term = int(leases[0]["term"]) if leases else 0
        names = await asyncio.to_thread(_who_began, fleet, term) if term > after else []
        return Leading(names[-1], term) if names else None

    return await eventually(found, within_s=within_s, what=f"a term after {after}")


async def lease_end(fleet: CheckedFleet) -> datetime:
    """Return when the lease of whoever leads, or has led last, ends by the database's clock."""
    (lease,) = await fleet.database.all("leases", {"_id": DISPATCHER})
    ends_at: datetime = lease["expires_at"]
    return ends_at


async def is_said(fleet: CheckedFleet, who: Leading, event: str, *, within_s: float = 20) -> None:
    """Return once a dispatcher has logged this of its term."""

    async def it_is() -> bool:
        return who.term in await asyncio.to_thread(_terms, fleet, who.name, event)

    await eventually(it_is, within_s=within_s, what=f"{event} of {who}")


def _who_began(fleet: CheckedFleet, term: int) -> list[str]:
    names = fleet.processes.dispatchers
    return [name for name in names if term in _terms(fleet, name, "dispatcher.leading")]


def _terms(fleet: CheckedFleet, name: str, event: str) -> list[int]:
    """Return the terms of which a dispatcher has logged this."""
    log = fleet.service(name).daemon.log
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if f'"{event}"' in line and line.endswith("\n")]
    return [int(json.loads(line)["term"]) for line in whole]
