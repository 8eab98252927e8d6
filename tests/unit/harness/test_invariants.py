"""The checker itself: each invariant that is broken on purpose is found."""

import json
from typing import Any

import pytest

from tests.support.invariants.checker import (
    Snapshot,
    capacity,
    causes,
    containers_as_recorded,
    left_connections,
    letters,
    one_container_each,
    too_slow,
    unheard,
)
from tests.support.invariants.outside import Document, Labelled
from tests.support.invariants.sampler import Sampler, over_capacity

CONTAINER = "c" * 12
JOB = {
    "_id": "j1",
    "state": "LOADED",
    "host_id": "h1",
    "generation": 2,
    "container_id": CONTAINER,
}
HELD = {"job_id": "j1", "generation": 2, "slots": 1}


def host(*held: Document, used: int | None = None, slots: int = 2) -> Document:
    count = len(held) if used is None else used
    return {"_id": "h1", "slots": slots, "slots_used": count, "reservations": list(held)}


def container(job_id: str = "j1", generation: int = 2, state: str = "running") -> Labelled:
    return Labelled("h1", job_id, generation, CONTAINER, state)


def snapshot(**parts: Any) -> Snapshot:
    empty: dict[str, Any] = {
        "operations": [],
        "jobs": [JOB],
        "hosts": [host(HELD)],
        "letters": [],
        "containers": [container()],
        "others": {"h1": set()},
    }
    return Snapshot(**{**empty, **parts})


def test_a_job_with_its_container_and_its_reservation_is_right() -> None:
    now = snapshot()
    checks = (capacity, causes, containers_as_recorded, letters, one_container_each)
    assert [sentence for check in checks for sentence in check(now)] == []


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"containers": []}, "lacks"),
        ({"containers": [container(), container("j2")]}, "orphan"),
        ({"containers": [container(state="exited")]}, "does not run"),
        ({"jobs": [JOB | {"state": "TERMINATED"}]}, "orphan"),
        ({"jobs": [JOB | {"container_id": "d" * 12}]}, "in the record and is"),
    ],
)
def test_containers_that_the_record_does_not_know_are_found(
    parts: dict[str, Any], word: str
) -> None:
    assert any(word in sentence for sentence in containers_as_recorded(snapshot(**parts)))


def test_two_containers_of_a_job_are_found() -> None:
    twice = snapshot(containers=[container(), container()])
    assert any("2 containers" in sentence for sentence in one_container_each(twice))
    both = snapshot(containers=[container(), container(generation=1)])
    assert any("generations [1, 2]" in sentence for sentence in one_container_each(both))


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"hosts": [host()]}, "no reservation"),
        ({"jobs": []}, "not live there"),
        ({"hosts": [host(HELD, HELD)]}, "2 reservations"),
        ({"hosts": [host(HELD, used=3)]}, "3 of 2"),
    ],
)
def test_capacity_that_does_not_add_up_is_found(parts: dict[str, Any], word: str) -> None:
    assert any(word in sentence for sentence in capacity(snapshot(**parts)))


def test_a_host_that_counts_wrong_is_found_in_a_sample() -> None:
    assert over_capacity(host(HELD)) == []
    assert "has reserved 1" in over_capacity(host(HELD, used=2))[0]


CAPACITY = {
    "cpus": 2.0,
    "reserved_cpus": 0.5,
    "memory": 100,
    "reserved_memory": 10,
    "devices": [{"uuid": "GPU-a", "memory": 40}],
}


def on_device(job_id: str, amount: int, **more: Any) -> Document:
    resident = {"version": 1, "memory": 0, "devices": {"GPU-a": amount}}
    return {**HELD, "job_id": job_id, "devices": ["GPU-a"], "resident": resident, **more}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([on_device("j1", 40)], None),
        ([on_device("j1", 20), on_device("j2", 21)], "41 of 40: GPU-a"),
        ([{**HELD, "millicpus": 1_501}], "1501 of 1500.0: processors"),
        ([{**HELD, "memory": 60}, {**HELD, "memory": 31}], "91 of 90: memory"),
    ],
)
def test_a_host_that_gives_more_than_it_has_is_named(
    held: list[Document], said: str | None
) -> None:
    wrong = over_capacity({**host(*held), "capacity": CAPACITY})
    assert [sentence.partition("allocated ")[2] for sentence in wrong] == ([said] if said else [])


@pytest.mark.parametrize(
    ("state", "held", "said"),
    [
        ("LOADED", on_device("j1", 40), None),
        ("CREATED", on_device("j1", 40), "holds memory for j1, which is not loaded"),
        ("LOADED", on_device("j1", 40, resident=None), "holds no memory for j1"),
        ("LOADED", on_device("j1", 40, devices=["GPU-b"]), "['GPU-a', 'GPU-b']"),
    ],
)
@pytest.mark.parametrize("needs", [{"gpus": 1}, {"resident_memory": 1, "gpus": 0}])
def test_memory_is_held_for_what_is_loaded(
    state: str, held: Document, said: str | None, needs: Document
) -> None:
    job = {**JOB, "state": state, "spec": json.dumps({"resources": needs})}
    now = snapshot(jobs=[job], hosts=[{**host(held), "capacity": CAPACITY}])
    found = list(capacity(now))
    assert len(found) == (said is not None)
    assert all(said in sentence for sentence in found if said)


CONNECTED = {
    "modelyard gateway consume": 1,
    "modelyard gateway publish": 1,
    "modelyard dispatcher consume": 4,
    "modelyard dispatcher publish": 1,
    "modelyard worker h1 consume": 2,
}


@pytest.mark.parametrize(
    ("name", "count", "word"),
    [
        ("modelyard dispatcher consume", 5, "dispatcher has 5"),
        ("modelyard dispatcher consume", 3, "dispatcher has 3"),
        ("modelyard gateway publish", 2, "gateway has 2"),
        ("modelyard worker h1 consume", 0, "worker h1 has 0"),
        ("modelyard worker h1 look", 3, "worker h1 has 3"),
    ],
)
def test_a_connection_too_many_or_too_few_is_found(name: str, count: int, word: str) -> None:
    assert list(left_connections(CONNECTED, ["h1"], 2)) == []
    (told,) = left_connections(CONNECTED | {name: count}, ["h1"], 2)
    assert word in told


def test_a_worker_that_runs_and_is_not_heard_is_found() -> None:
    suspect = snapshot(hosts=[host() | {"liveness": "SUSPECT"}])
    assert list(unheard(suspect, ["h1"])) == ["the worker of h1 runs, and its host is SUSPECT"]
    assert list(unheard(suspect, [])) == []
    assert list(unheard(snapshot(hosts=[host() | {"liveness": "ONLINE"}]), ["h1"])) == []
    assert list(unheard(snapshot(hosts=[]), ["h1"])) != []


def test_what_heals_later_than_promised_is_found() -> None:
    assert list(too_slow(60.0, 60)) == []
    assert list(too_slow(60.1, 60)) == ["it took 60.1 s to heal, and 60 s are promised"]


async def test_a_job_that_fell_back_is_found_between_two_samples() -> None:
    database = SampledDatabase(version=3, generation=2, state="LOADED")
    sampler = Sampler(database)  # type: ignore[arg-type]
    await sampler.sample()
    database.job |= {"version": 4, "generation": 1}
    await sampler.sample()
    assert any("job j1 fell back" in sentence for sentence in sampler.wrong["I6"])


@pytest.mark.parametrize("changed", [False, True])
async def test_memory_that_is_not_held_for_a_moment_is_found_unless_the_job_changed(
    *, changed: bool
) -> None:
    spec = json.dumps({"resources": {"resident_memory": 1}})
    database = SampledDatabase(version=3, generation=2, state="LOADED", host_id="h1", spec=spec)
    sampler = Sampler(database)  # type: ignore[arg-type]
    resident = {"version": 1, "memory": 1, "devices": {}}
    kept, let_go = [{**HELD, "resident": resident}], [HELD]
    database.hosts = [host(*kept)]
    await sampler.sample()
    for held in (let_go, kept):
        database.hosts = [host(*held)]
        await sampler.sample(operations=False)
    database.job["version"] += changed
    await sampler.sample()
    wanted = set() if changed else {"h1 held no memory for j1 while it was LOADED"}
    assert sampler.wrong["I5"] == wanted


class SampledDatabase:
    """One job, and hosts."""

    def __init__(self, **job: int | str) -> None:
        self.job: Document = {"_id": "j1", **job}
        self.hosts: list[Document] = []

    async def all(self, collection: str, *_: object) -> list[Document]:
        return {"jobs": [dict(self.job)], "hosts": self.hosts}.get(collection, [])


def test_an_end_without_a_cause_is_found() -> None:
    bare = {"_id": "op", "state": "FAILED", "error": None}
    told = bare | {"error": {"code": "exited", "message": "The container exited."}}
    odd = bare | {"error": {"code": "weird", "message": "?"}}
    assert list(causes(snapshot(operations=[told]))) == []
    for one in (bare, odd):
        assert any("without a code" in s for s in causes(snapshot(operations=[one])))
    failed_job = snapshot(jobs=[JOB | {"state": "FAILED", "error": None}])
    assert any("job j1" in sentence for sentence in causes(failed_job))


def test_a_dead_letter_needs_a_reason_and_an_end_of_its_operation() -> None:
    payload = b'{"requests": [{"operation_id": "op"}]}'
    letter = {
        "_id": "l",
        "reason": "delivery_limit",
        "queue": "modelyard.jobs.v1",
        "payload": payload,
    }
    done = [{"_id": "op", "state": "REJECTED"}]
    assert list(letters(snapshot(letters=[letter], operations=done))) == []
    assert any("left op" in sentence for sentence in letters(snapshot(letters=[letter])))
    nameless = letter | {"reason": "because"}
    assert any("no known reason" in sentence for sentence in letters(snapshot(letters=[nameless])))
