"""What an explanation reads of a large fleet."""

import asyncio
from typing import Any

import pytest

from gateway.explaining import explanation_of, explanation_of_request
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import Verb
from modelyard.contract.views import DryRunOutcome
from modelyard.scheduling.prospects import MOST_HOSTS
from modelyard.store import Store
from modelyard.store.records import HostRecord, NewOperation
from tests.support.placed import host_online, in_line, placed, spec_of

WAITS = ("101 hosts: each has no free slot",)


async def test_of_a_large_fleet_the_first_hosts_are_listed_and_the_recorded_reasons_given(
    store: Store,
) -> None:
    names = [f"h-{number:03}" for number in range(MOST_HOSTS + 1)]
    await asyncio.gather(*(host_online(store, name) for name in names))
    await store.models.put(spec_of())
    await store.jobs.ensure(["new"])
    (waits,) = await in_line(store, "new", [Verb.DEPLOY_CREATE])
    await store.operations.explain_waiting({waits.operation_id: WAITS})
    found = await explanation_of(store, waits.operation_id)
    assert found is not None
    assert found.reasons[1:] == WAITS
    assert [one.host_id for one in found.hosts] == names[:MOST_HOSTS]


async def test_in_a_large_fleet_the_host_of_a_job_is_looked_at_wherever_it_comes(
    store: Store,
) -> None:
    names = [f"h-{number:03}" for number in range(MOST_HOSTS + 2)]
    await asyncio.gather(*(host_online(store, name) for name in names))
    await placed(store, "job", host_id=names[-1])
    (first, _) = await in_line(store, "job", [Verb.DEPLOY_UNLOAD, Verb.DEPLOY_LOAD])
    found = await explanation_of(store, first.operation_id)
    assert found is not None
    assert found.reasons == (f"The dispatcher is about to send it to host {names[-1]}.",)


async def test_a_dry_run_reads_and_plans_for_the_first_hosts_of_a_large_fleet(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"h-{number:03}" for number in range(MOST_HOSTS + 20)]
    await asyncio.gather(*(host_online(store, name) for name in names))
    await store.models.put(spec_of())
    read: list[int] = []
    read_hosts = store.hosts.all

    async def counted(*args: Any, **more: Any) -> list[HostRecord]:
        found = await read_hosts(*args, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(store.hosts, "all", counted)
    request = JobRequest(job_id="new", operation_type=Verb.DEPLOY_CREATE, model="m")
    new = NewOperation.of(new_operation_id(), request, "http")
    found = await explanation_of_request(store, new)
    assert read == [MOST_HOSTS + 1]
    assert (found.outcome, found.host_id) == (DryRunOutcome.STARTS, None)
    assert [one.host_id for one in found.hosts] == names[:MOST_HOSTS]
    assert found.reasons[1].startswith("Only the first 100 hosts were looked at: 100 have room")
