"""Looks at the database again and again while something is broken: I5 and I6 at every sample."""

import asyncio
import contextlib
import time
from typing import Any

from pymongo.errors import PyMongoError

from modelyard.contract.states import JobState, OperationState
from tests.support.invariants.histories import Fact, JobLook, wrong_between, wrong_between_jobs
from tests.support.invariants.outside import Database

Document = dict[str, Any]
INTERVAL_S = 0.2
OPERATIONS_EVERY = 5
"""Hosts are few and looked at each time; operations are many."""


class Sampler:
    """Runs as a task until it is cancelled; a database that is away makes a hole in the samples."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._operations: dict[str, Fact] = {}
        self._jobs: dict[str, JobLook] = {}
        self.samples = 0
        self.open_at = 0.0
        """When an operation was last seen that had not ended, on the clock of `time.monotonic`."""
        self.wrong: dict[str, set[str]] = {"I5": set(), "I6": set()}

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            with contextlib.suppress(PyMongoError):  # while it is away there is nothing to judge
                await self.sample(operations=self.samples % OPERATIONS_EVERY == 0)
            await asyncio.sleep(INTERVAL_S)

    async def sample(self, *, operations: bool = True) -> None:
        """Look once; raises `PyMongoError`."""
        self.wrong["I5"].update(
            sentence
            for host in await self._database.all("hosts")
            for sentence in over_capacity(host)
        )
        if operations:
            await self._look_at_operations()
            await self._look_at_jobs()
        self.samples += 1

    async def _look_at_operations(self) -> None:
        fields = ("state", "epoch", "seq")
        for one in await self._database.all("operations", None, *fields):
            seen = Fact(one["epoch"], one["seq"], OperationState(one["state"]))
            before = self._operations.get(one["_id"], seen)
            if sentence := wrong_between(one["_id"], before, seen):
                self.wrong["I6"].add(sentence)
            self._operations[one["_id"]] = seen
            if not seen.state.terminal:
                self.open_at = time.monotonic()

    async def _look_at_jobs(self) -> None:
        for one in await self._database.all("jobs", None, "version", "generation", "state"):
            seen = JobLook(one.get("version", 0), one.get("generation", 0), JobState(one["state"]))
            before = self._jobs.get(one["_id"], seen)
            if sentence := wrong_between_jobs(one["_id"], before, seen):
                self.wrong["I6"].add(sentence)
            self._jobs[one["_id"]] = seen


def over_capacity(host: Document) -> list[str]:
    """Return what is wrong with one host document by itself."""
    used, slots = host.get("slots_used", 0), host.get("slots", 0)
    held = sum(one["slots"] for one in host.get("reservations", ()))
    wrong = []
    if slots is not None and used > slots:
        wrong.append(f"host {host['_id']} has {used} of {slots} slots in use")
    if used != held:
        wrong.append(f"host {host['_id']} counts {used} slots in use and has reserved {held}")
    for what, (allocated, there) in sorted(allocations(host).items()):
        if allocated > there:
            wrong.append(f"host {host['_id']} has allocated {allocated} of {there}: {what}")
    return wrong


def allocations(host: Document) -> dict[str, tuple[float, float]]:
    """Return how much of each resource of a host is allocated, and how much there is."""
    has = host.get("capacity")
    if not has:
        return {}
    entries = host.get("reservations", ())
    residents = [one["resident"] for one in entries if one.get("resident")]
    memory = sum(one.get("memory", 0) for one in [*entries, *residents])
    cpus = sum(one.get("millicpus", 0) for one in entries)
    return {
        "processors": (cpus, 1_000 * (has["cpus"] - has["reserved_cpus"])),
        "memory": (memory, has["memory"] - has["reserved_memory"]),
        **{
            device["uuid"]: (
                sum(one["devices"].get(device["uuid"], 0) for one in residents),
                device["memory"],
            )
            for device in has["devices"]
        },
    }
