"""The invariants, looked at from outside: after every rule, and when all should be quiet."""

import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gateway.explaining import explanation_of, operation_views
from modelyard.contract.capacity.needs import resident_need
from modelyard.contract.states import VERB_RULES, OperationState, Verb
from modelyard.contract.topology import HEARTBEATS_QUEUE
from tests.statemachine.catalog import MODELS
from tests.statemachine.world import World
from tests.support.invariants.checker import (
    Snapshot,
    capacity,
    causes,
    containers_as_recorded,
    letters,
    one_container_each,
)
from tests.support.invariants.histories import STALE
from tests.support.invariants.outside import Document, Labelled
from tests.support.invariants.sampler import allocations

if TYPE_CHECKING:
    from gateway.reading import BoundedReads

T = TypeVar("T")
MOST_LISTED = 1_000


class _Reads:
    """Reads of a database that always answers."""

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call()


def wrong_now(world: World) -> list[str]:
    """Return what may never be, at whatever moment (I2, I5, I6, I10, and nobody dies)."""
    return [
        *world.watching.wrong,
        *world.died,
        *(f"I2: {sentence}" for sentence in _overlaps(world)),
        *(f"I2: {sentence}" for sentence in _repeated_inferences(world)),
        *(f"I10: {sentence}" for sentence in _bystanders(world)),
        *(f"I3: {sentence}" for sentence in _names_twice(world)),
    ]


def wrong_when_quiet(world: World, *, nothing_waits: bool) -> list[str]:
    """Return what is not in order yet, or will never be (I1, I3, I4, I5, I8).

    Unless `nothing_waits`, operations may wait for room while there is none.
    """
    now = _look(world)
    waiting = set() if nothing_waits else _waiting_for_room(now)
    return [
        *world.died,
        *(f"I1: {sentence}" for sentence in _all_terminal(world, now, waiting)),
        *(f"I3: {sentence}" for sentence in one_container_each(now)),
        *(f"I4: {sentence}" for sentence in containers_as_recorded(now)),
        *(f"I5: {sentence}" for sentence in capacity(now)),
        *(f"I8: {sentence}" for sentence in _queues(world)),
        *(f"alive: {sentence}" for sentence in _alive(now)),
        *(f"explain: {sentence}" for sentence in _unexplained(world, now)),
    ]


def wrong_at_the_end(world: World) -> list[str]:
    """Return what is wrong with what was left behind (I1, I6, I7, I9, and results)."""
    now = _look(world)
    return [
        *(f"I1: {sentence}" for sentence in _nobody_asked(world, now)),
        *(f"I6: {sentence}" for sentence in _told(world, now)),
        *(f"I7: {sentence}" for sentence in letters(now)),
        *(f"I9: {sentence}" for sentence in causes(now)),
        *(f"result: {sentence}" for sentence in _results(now)),
        *(f"late: {sentence}" for sentence in _late(world, now)),
    ]


def _look(world: World) -> Snapshot:
    return Snapshot(
        operations=world.database.documents("operations"),
        jobs=world.database.documents("jobs"),
        hosts=world.database.documents("hosts"),
        letters=world.database.documents("dead_letters"),
        containers=[
            Labelled(
                host_id,
                one.plan.labels.job_id,
                one.plan.labels.generation,
                one.id,
                "running" if one.running else "exited",
            )
            for host_id in world.engines
            for one in world.containers(host_id)
            if one.plan is not None
        ],
        others={host_id: set() for host_id in world.engines},
    )


def _overlaps(world: World) -> Iterator[str]:
    for operation_id, sentence in world.runs.overlaps():
        if operation_id not in world.inputs_shared:
            yield sentence


def _repeated_inferences(world: World) -> Iterator[str]:
    """Yield inferences that were sent into containers twice."""
    repeated = set(world.runs.repeated()) - world.inputs_shared
    for one in world.database.documents("operations") if repeated else ():
        if one["_id"] in repeated and one["verb"] == Verb.INFER:
            yield f"the inference {one['_id']} ran more than once"


def _bystanders(world: World) -> Iterator[str]:
    for host_id, engine in world.engines.items():
        if not any(
            one.name == "somebody-elses" and one.running for one in engine.containers.values()
        ):
            yield f"the container of somebody else on {host_id} is not as it was"


def _names_twice(world: World) -> Iterator[str]:
    for host_id in world.engines:
        names = [one.name for one in world.containers(host_id)]
        if len(set(names)) < len(names):
            yield f"{host_id} has two containers of one name: {names}"


def _waiting_for_room(now: Snapshot) -> set[str]:
    """Return the jobs whose line stands because what the first of it needs is taken.

    An operation keeps its mark of having waited, for room or for its host, until it is given out,
    also while others go before it: such a line moves.
    """
    jobs = {job["_id"]: job for job in now.jobs}
    first: dict[str, dict[str, Any]] = {}
    for one in now.operations:
        if one["open"] and one.get("line") is not None:
            job_id = one["job_id"]
            first[job_id] = min(first.get(job_id, one), one, key=lambda it: it["line"])
    return {
        job_id
        for job_id, one in first.items()
        if one.get("waits") and not any(_has_room(host, one, jobs[job_id]) for host in now.hosts)
    }


def _has_room(host: Document, operation: Document, job: Document) -> bool:
    """Tell whether a host has what an operation needs to begin: a slot, memory of a device.

    A LOAD may have its job created anew on another host first.
    """
    verb = Verb(operation["verb"])
    places = VERB_RULES[verb].places
    if not places and verb is not Verb.DEPLOY_LOAD:
        return True
    spec = MODELS.get(operation["model"] if places else json.loads(job["spec"])["name"])
    at_home = not places and host["_id"] == job["host_id"]
    if not places and not at_home and not (spec and spec.residency.relocate):
        return False
    if not at_home and host["slots_used"] >= host.get("slots", 0):
        return False
    if spec is None or not spec.resources.gpus:
        return True
    allocated = allocations(host)
    for device in host["capacity"]["devices"]:
        used, there = allocated[device["uuid"]]
        taken = 0 if verb is Verb.DEPLOY_CREATE else used
        needed = resident_need(spec).on("")  # nothing is measured of declared devices
        if there - taken >= (there if needed is None else needed):
            return True
    return False


def _all_terminal(world: World, now: Snapshot, waiting: set[str]) -> Iterator[str]:
    for one in now.operations:
        if one["state"] == OperationState.QUEUED and one["job_id"] in waiting:
            continue
        if not OperationState(one["state"]).terminal:
            yield f"{one['_id']} ({one['verb']} of {one.get('job_id')}) is still {one['state']}"
    for missing in sorted(world.accepted - {one["_id"] for one in now.operations}):
        yield f"{missing} was accepted and is not there"


def _nobody_asked(world: World, now: Snapshot) -> Iterator[str]:
    asked = world.accepted | world.unknown
    for one in now.operations:
        if one["source"] == "http" and one["_id"] not in asked:
            yield f"{one['_id']} is there and nobody asked for it"


def _queues(world: World) -> Iterator[str]:
    for queue in world.rabbit.queues.values():
        if queue.name != HEARTBEATS_QUEUE.name and (queue.ready or queue.unsettled):
            yield (
                f"{queue.name} holds {queue.ready} messages and {queue.unsettled} unsettled, "
                f"and has {len(queue.consumers)} consumers"
            )


def _alive(now: Snapshot) -> Iterator[str]:
    for host in now.hosts:
        if host.get("liveness") != "ONLINE":
            yield f"{host['_id']} is {host.get('liveness')}"
    for job in now.jobs:
        if job.get("recovery"):
            yield f"{job['_id']} still waits to be brought back"


def _unexplained(world: World, now: Snapshot) -> Iterator[str]:
    """Yield operations that wait without a reason, or are said to be about to start."""
    for one in now.operations:
        if one["state"] == OperationState.QUEUED:
            found = world.loop.run(explanation_of(world.front.store, one["_id"]))
            if found is None or "is about to" in found.reasons[0]:
                yield f"{one['_id']} waits: {found.reasons if found else None}"
    for key, reasons in listed_reasons(world).items():
        if not reasons:
            yield f"{key} is QUEUED, and a list does not say why"


def listed_reasons(world: World) -> dict[str, tuple[str, ...]]:
    """Return what a list says of why operations in line wait, by the id of each.

    Not of those that pause after a failed attempt: of these it says when that ends.
    """
    store = world.front.store

    async def read() -> dict[str, tuple[str, ...]]:
        criteria = {"state": OperationState.QUEUED.value}
        page = await store.operation_queries.page(criteria, after=None, limit=MOST_LISTED)
        records = [one for one in page.items if one.line is not None and one.not_before is None]
        views = await operation_views(cast("BoundedReads", _Reads()), store, records)
        return {one.operation_id: one.waiting_for for one in views}

    return world.loop.run(read())


def _told(world: World, now: Snapshot) -> Iterator[str]:
    """Yield events that are no facts: what they say was never in the record.

    An event may be missing: whoever dies right before telling one leaves a hole.
    """
    ends = {one["_id"]: one["state"] for one in now.operations}
    for event in world.database.documents("events"):
        if not event["type"].startswith("operation.") or event["type"] == "operation.stale_report":
            continue
        key, state = event["operation_id"], OperationState(event["state"])
        written = world.watching.written[key, event["epoch"], state]
        if not any(seq >= event["seq"] for seq in written):
            yield f"{key} was told to be {state}({event['epoch']},{event['seq']}) and never was"
        if state.terminal and state != ends[key]:
            yield f"{key} was told to be {state} and is {ends[key]}"


def _late(world: World, now: Snapshot) -> Iterator[str]:
    """Yield hosts that count more late reports than the log has; a crash may lose a count."""
    noted = Counter(
        (event["host_id"], event["detail"]["why"])
        for event in world.database.documents("events")
        if event["type"] in STALE
    )
    for host in now.hosts:
        for why, count in host.get("fenced_off", {}).items():
            if count > noted[host["_id"], why]:
                yield f"{host['_id']} counts {count} {why}, noted are {noted[host['_id'], why]}"


def _results(now: Snapshot) -> Iterator[str]:
    """Yield operations that have succeeded without their own result."""
    for one in now.operations:
        if one["state"] != OperationState.SUCCEEDED or one["verb"] not in ("INFER", "TEMP"):
            continue
        given = json.loads(one["input_json"]) if one.get("input_json") else None
        wanted = {"batch": one["_id"]} if one["model"] == "batch" else {"echo": given}
        if json.loads(one.get("result_json") or "null") != wanted:
            yield f"{one['_id']} has the result {one.get('result_json')}, not {wanted}"


def seen(world: World) -> dict[str, int]:
    """Return how many operations ended in which state, to see what examples reach."""
    counted: dict[str, int] = defaultdict(int)
    for one in world.database.documents("operations"):
        code = (one.get("error") or {}).get("code") or ""
        counted[f"{one['verb']} {one['state']} {code}".strip()] += 1
    return counted
