"""How much of a gateway's processor an explanation takes in a full fleet.

The database in memory searches in Python, which takes longer than all the rest. So it answers each
question once, before the clock starts, and what is measured is the gateway's own part: to make
records of what was read, to plan a pass over them, and to put its outcome into words.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import count
from statistics import median
from typing import Any

import pytest

from gateway.explaining import explanation_of
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import Device, HostCapacity
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.messages import EngineFacts, HostOnline, JobRequest
from modelyard.contract.states import JobState, OperationState, Verb
from modelyard.store import Store
from modelyard.store.jobs import Assignment, JobEffect
from modelyard.store.operation_writes import DispatchClaim
from modelyard.store.operations import FRONT_OF_LINE
from modelyard.store.records import Document, NewOperation
from tests.fakes import store as memory
from tests.fakes.mongodb import MemoryCollection, MemoryCursor, MemoryDatabase

HOSTS, DEVICES, WAITING = 100, 8, 1_000
GIB = 1 << 30
GOAL_S = 0.050
LIMIT_S = 1.5 * GOAL_S
"""Processor time, too, is longer on a slow machine, and on one whose caches others use."""
TRIES = 21
ROUNDS = 3
"""What is too slow once is measured again: a loaded machine makes it so, and not each time."""
SPEC = ModelSpec.model_validate(
    {
        "name": "m",
        "image": "x/y",
        "profile": "open-inference",
        "port": 1,
        "resources": {"cpus": 1.0, "memory": "1g", "gpus": 1, "gpu_memory": "6g"},
        "residency": {"on_demand": True},
    }
)
OFFER = HostOnline(
    capacity=HostCapacity(
        cpus=DEVICES + 1.0,
        memory=64 * GIB,
        devices=tuple(Device(uuid=f"GPU-{n}", memory=8 * GIB) for n in range(DEVICES)),
    ),
    engine=EngineFacts(version="1", api_version="1"),
)
FLEET = [f"h-{number:03}" for number in range(HOSTS)]


def held_on(host_id: str) -> list[Allocation]:
    """Return what a full host holds: a model on each device, and a container without its own."""
    return [
        Allocation(
            job_id=f"{host_id}-{number}",
            generation=1,
            millicpus=1_000,
            memory=GIB,
            devices=(f"GPU-{number % DEVICES}",),
            resident=ResidentAllocation(devices={f"GPU-{number}": 6 * GIB})
            if number < DEVICES
            else None,
        )
        for number in range(DEVICES + 1)
    ]


class Waiting:
    """Operations for lines, and which of them the scheduler has found no room for."""

    def __init__(self) -> None:
        self._lines = count(1)
        self.new: list[tuple[NewOperation, int]] = []
        self.refused: dict[str, tuple[str, ...]] = {}

    def add(self, verb: Verb, job_id: str, *, refused: bool = False, front: bool = False) -> str:
        request: dict[str, Any] = {"job_id": job_id, "operation_type": verb}
        request |= {"model": "m"} if verb in (Verb.DEPLOY_CREATE, Verb.TEMP) else {}
        request |= {"input": 1} if verb in (Verb.INFER, Verb.TEMP) else {}
        line = next(self._lines)
        key = f"op-{line}"
        new = NewOperation.of(key, JobRequest.model_validate(request), "http")
        self.new.append((new, line + FRONT_OF_LINE if front else line))
        if refused:
            self.refused[key] = ("no room",)
        return key

    async def record(self, store: Store) -> None:
        await store.jobs.ensure(new.job_id or "" for new, _ in self.new)
        await store.operations.take_in(self.new)
        assert await store.operations.explain_waiting(self.refused)


async def full_fleet(store: Store) -> None:
    """Record hosts all of whose devices and processors are taken."""
    await store.models.put(SPEC)
    for host_id in FLEET:
        await store.hosts.come_online(host_id, "boot", OFFER)
    for host in await store.hosts.all():
        assert await store.hosts.reserve(host, held_on(host.host_id), token="t")
    jobs = [(one, host_id) for host_id in FLEET for one in held_on(host_id)]
    await store.jobs.ensure(one.job_id for one, _ in jobs)
    given = [
        Assignment(one.job_id, 0, "made", 1, 1, host_id, SPEC, devices=one.devices)
        for one, host_id in jobs
    ]
    assert len(await store.jobs.assign(given, token="t")) == len(jobs)
    for seq, state in ((1, JobState.CREATED), (2, JobState.LOADED)):
        effects = [
            JobEffect(one.job_id, "made", 1, seq, 1, host_id, state, "c" * 64, None)
            for one, host_id in jobs
            if state is JobState.CREATED or one.resident
        ]
        assert await store.jobs.apply(effects) == len(effects)


class KnownAnswers(MemoryCollection):
    """A collection that answers what it was asked before at once."""

    answers: dict[str, list[Document]]

    def find(
        self,
        query: Mapping[str, Any],
        projection: Mapping[str, int] | None = None,
        *,
        limit: int = 0,
    ) -> MemoryCursor:
        asked = super().find(query, projection, limit=limit)
        return self._known(asked, repr((self._name, query, projection)))

    def aggregate(
        self, pipeline: Sequence[Mapping[str, Any]], *, hint: str | None = None
    ) -> MemoryCursor:
        return self._known(super().aggregate(pipeline, hint=hint), repr((self._name, pipeline)))

    def _known(self, asked: MemoryCursor, question: str) -> MemoryCursor:
        async def read(cursor: MemoryCursor) -> list[Document]:
            whole = f"{question} {cursor.order} {cursor.most}"
            if whole not in self.answers:
                asked.order, asked.most = cursor.order, cursor.most
                self.answers[whole] = await asked.to_list(None)
            return self.answers[whole]

        known = MemoryCursor(read)
        return known.limit(asked.most)


async def median_s(store: Store, key: str) -> float:
    """Return the median of the seconds of processor time that an explanation takes."""
    took_s = []
    for _ in range(TRIES):
        began = time.thread_time()
        await explanation_of(store, key)
        took_s.append(time.thread_time() - began)
    return median(took_s)


@pytest.mark.timeout(120)
async def test_every_kind_of_waiting_is_explained_in_50_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    database = MemoryDatabase(time.monotonic)
    store = memory.MemoryStore(database, timeout_s=60.0)
    await full_fleet(store)
    waiting = Waiting()
    unloaded = [f"{host_id}-{DEVICES}" for host_id in FLEET]
    loads = [waiting.add(Verb.DEPLOY_LOAD, one, refused=True) for one in unloaded]
    behind = [waiting.add(Verb.INFER, one) for one in unloaded]
    sent = waiting.add(Verb.INFER, "h-000-0")
    kinds = {
        "sent": sent,
        "unload before what runs": waiting.add(Verb.DEPLOY_UNLOAD, "h-000-0", front=True),
        "inference behind an unload": waiting.add(Verb.INFER, "h-000-0"),
        "load": loads[-1],
        "inference behind a load": behind[-1],
    }
    while len(waiting.new) < WAITING + 1:
        for verb in (Verb.DEPLOY_CREATE, Verb.TEMP):
            kinds[verb] = waiting.add(verb, f"new-{len(waiting.new)}", refused=True)
    await waiting.record(store)
    operation = await store.operation_queries.get(sent)
    assert operation is not None
    claim = DispatchClaim(operation, "h-000", "boot", 1)
    assert await store.operations.claim([claim], token="t")

    monkeypatch.setattr(KnownAnswers, "answers", {}, raising=False)
    monkeypatch.setattr(memory, "MemoryCollection", KnownAnswers)
    asked = memory.MemoryStore(database, timeout_s=60.0)
    took_s: dict[str, float] = {}
    for kind, key in kinds.items():
        found = await explanation_of(asked, key)
        assert found is not None
        started = kind == "sent"
        assert found.state is (OperationState.DISPATCHED if started else OperationState.QUEUED)
        assert "about to" not in found.reasons[0]
        for _ in range(ROUNDS):
            took_s[kind] = await median_s(asked, key)
            if took_s[kind] <= LIMIT_S:
                break
    assert {kind: one for kind, one in took_s.items() if one > LIMIT_S} == {}
