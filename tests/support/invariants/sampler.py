"""Looks at the database again and again while something is broken: I5 and I6 at every sample."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
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
        self._holders: set[Holder] | None = None
        """Who held memory for its model at each look at the hosts since the last one at the jobs;
        None before the first."""
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
        hosts = await self._database.all("hosts")
        self.wrong["I5"].update(sentence for host in hosts for sentence in over_capacity(host))
        held = holders(hosts)
        self._holders = held if self._holders is None else self._holders & held
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
        fields = ("version", "generation", "state", "host_id", "spec")
        jobs = await self._database.all("jobs", None, *fields)
        held, self._holders = self._holders, None
        for one in jobs:
            seen = JobLook(one.get("version", 0), one.get("generation", 0), JobState(one["state"]))
            before = self._jobs.get(one["_id"])
            if sentence := wrong_between_jobs(one["_id"], before or seen, seen):
                self.wrong["I6"].add(sentence)
            # The same version at both looks: its model was in memory all the time between them.
            if before == seen and held is not None and lacks_memory(one, held):
                self.wrong["I5"].add(
                    f"{one['host_id']} held no memory for {one['_id']} while it was LOADED"
                )
            self._jobs[one["_id"]] = seen


Holder = tuple[str, str, int]
"""A host, a job and its generation."""


def holders(hosts: Iterable[Document]) -> set[Holder]:
    """Return for which jobs and generations hosts hold memory of a model."""
    return {
        (host["_id"], one["job_id"], one["generation"])
        for host in hosts
        for one in host.get("reservations", ())
        if one.get("resident")
    }


def lacks_memory(job: Document, held: set[Holder]) -> bool:
    """Tell whether a job is LOADED, and its host does not hold what its model needs in memory."""
    if job["state"] != JobState.LOADED or not job.get("spec"):
        return False
    resources = json.loads(job["spec"])["resources"]
    needs = bool(resources.get("gpus")) or bool(resources.get("resident_memory"))
    return needs and (job["host_id"], job["_id"], job["generation"]) not in held


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
