"""A lease that is not renewed: what stops, what is ended, and how the worker comes back."""

import asyncio

import pytest

from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.contract.topology import HEARTBEAT_INTERVAL_S, HEARTBEATS, LOST_AFTER_S
from tests.fakes.programs import FakeServer
from tests.support.waiting import eventually
from tests.support.worker.harness import VerbHarness, model
from tests.support.worker.host import Host, running_host
from worker.attempts.attempt import Attempt
from worker.containers.planning import PlanRules, plan_container
from worker.engine.labels import ContainerLabels
from worker.session.lease import WORKER_LEASE_S, Lease

CREATE, LOAD, INFER, TEMP = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.TEMP
SHORT_S = 0.6
BEAT_S = 0.1


def test_a_lease_is_lost_after_its_time_and_stays_lost() -> None:
    now = 100.0
    lease = Lease(seconds=10.0, clock=lambda: now)
    now = 1_000.0
    assert not lease.lost  # it has not begun
    lease.renew(now)
    now += 9.9
    assert not lease.lost
    lease.renew(now - 1.0)
    now += 8.9
    assert not lease.lost
    lease.renew(now - 12.0)  # a confirmation that was overtaken shortens nothing
    now += 0.2
    assert lease.lost
    lease.renew(now)
    assert lease.lost


def test_a_beat_that_is_confirmed_too_late_does_not_bring_a_lease_back() -> None:
    now = 0.0
    lease = Lease(seconds=10.0, clock=lambda: now)
    lease.renew(now)
    now = 11.0
    lease.renew(now)
    assert lease.lost


def test_a_loop_that_is_blocked_for_40_seconds_keeps_its_lease() -> None:
    now = 0.0
    lease = Lease(clock=lambda: now)
    lease.renew(now)
    now += HEARTBEAT_INTERVAL_S + 40.0
    assert not lease.lost
    assert WORKER_LEASE_S < LOST_AFTER_S


async def test_who_thaws_after_the_lease_goes_no_further() -> None:
    now = 0.0
    lease = Lease(seconds=10.0, clock=lambda: now)
    lease.renew(now)
    await lease.held()
    now = 11.0
    holding = asyncio.create_task(lease.held())
    await asyncio.wait((holding,), timeout=0.05)
    assert not holding.done()
    holding.cancel()
    await asyncio.wait_for(lease.until_lost(), timeout=5)


@pytest.mark.parametrize("verb", [CREATE, LOAD, INFER, TEMP])
async def test_no_verb_begins_anything_new_after_the_lease(verb: Verb) -> None:
    harness, now = VerbHarness(), 0.0
    if verb in {LOAD, INFER}:
        await harness.do(CREATE)
    if verb is INFER:
        await harness.do(LOAD)
    lease = Lease(seconds=10.0, clock=lambda: now)
    lease.renew(now)
    now = 11.0
    before = (len(harness.runtime.created), harness.server.loads, harness.server.infers_now)
    attempt = Attempt(harness.command(verb, input=1), harness.reports.append, held=lease.held)
    performing = asyncio.create_task(harness.operations.perform(attempt))
    await asyncio.wait((performing,), timeout=0.1)
    assert not performing.done()
    assert (len(harness.runtime.created), harness.server.loads, harness.server.infers_now) == before
    performing.cancel()


@pytest.mark.parametrize(
    ("verb", "spec", "strict"),
    [
        (CREATE, model(), False),
        (TEMP, model(), True),
        (CREATE, model(on_host_lost="recreate"), True),
    ],
)
def test_what_may_be_made_elsewhere_is_labelled(
    verb: Verb, spec: ModelSpec, *, strict: bool
) -> None:
    labels = plan_container(
        VerbHarness(spec).command(verb, input=1), None, PlanRules(host_id="host-1")
    ).labels
    assert labels.strict is strict
    assert labels.as_labels()["modelyard.lease"] == ("strict" if strict else "")
    assert ContainerLabels.parse(labels.as_labels(), name=labels.name) == labels


async def cut(host: Host) -> None:
    """Cut the host from its broker until its lease is lost."""
    host.broker.away = True

    async def ended() -> bool:
        return not host.broker.attached

    await eventually(ended, what="the end of the incarnation")


async def test_a_worker_whose_beats_are_taken_keeps_its_incarnation() -> None:
    async with running_host(fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        await host.online()

        async def beaten() -> bool:
            return sum(exchange is HEARTBEATS for exchange, _, _ in host.broker.published) > 12

        await eventually(beaten)
        assert len(host.incarnations) == 1


async def test_a_lost_lease_ends_temps_and_models_that_move_and_nothing_else() -> None:
    harness = VerbHarness()
    harness.runtime.images[harness.spec.image] = lambda _: FakeServer(may_infer=asyncio.Event())
    moving = model(on_host_lost="recreate")
    async with running_host(harness, fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        await host.done(CREATE, job="stays")
        await host.done(LOAD, job="stays")
        await host.done(CREATE, job="moves", spec=moving)
        await host.done(LOAD, job="moves", spec=moving)
        temp = harness.command(TEMP, job="temp", input=1)
        infer = harness.command(INFER, job="stays", input=1)
        await host.send(temp, infer)
        await host.in_phase(temp, Phase.INFERRING)
        await host.in_phase(infer, Phase.INFERRING)
        await cut(host)

        async def ended() -> bool:
            states = {it.name: it.running for it in harness.runtime.containers.values()}
            return states == {"modelyard-stays-1": True, "modelyard-moves-1": False}

        await eventually(ended, what="the end of what may run elsewhere, and of nothing else")
        host.broker.away = False
        await host.online(incarnations=2)
        assert len(set(host.incarnations)) == 2
        online = [it.online for it in host.broker.messages if it.online][-1]
        assert sorted((i.job_id, i.running, i.loaded) for i in online.inventory) == [
            ("moves", False, False),
            ("stays", True, True),
        ]
        # What was under way is never heard of again.
        assert (await host.done(CREATE, job="next")).job_state is JobState.CREATED
        assert host.ends_of(temp) == host.ends_of(infer) == []


async def test_what_waited_to_be_reported_is_dropped_with_the_lease() -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    async with running_host(harness, fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        command = harness.command(CREATE)
        create = harness.runtime.create
        may_create = asyncio.Event()

        async def slow(plan: object) -> str:
            await may_create.wait()
            return await create(plan)  # type: ignore[arg-type]

        harness.runtime.create = slow  # type: ignore[method-assign]
        await host.send(command)
        await host.in_phase(command, Phase.CREATING)
        host.broker.away = True
        may_create.set()
        await cut(host)
        host.broker.away = False
        await host.online(incarnations=2)
        assert (await host.done(CREATE, job="next")).state is OperationState.SUCCEEDED
        assert host.ends_of(command) == []


async def test_a_command_for_the_lost_incarnation_is_not_taken() -> None:
    async with running_host(fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        await host.online()
        await cut(host)
        command = host.harness.command(CREATE)
        host.broker.away = False
        await host.online(incarnations=2)
        await host.send(command, incarnation=host.incarnations[0])
        await host.done(CREATE, job="next")
        assert host.reports_of(command) == []


async def test_an_engine_that_is_away_loses_the_lease_and_is_waited_for() -> None:
    async with running_host(fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        await host.online()
        subscription = host.broker.subscription
        host.harness.runtime.available = False
        await asyncio.sleep(SHORT_S * 3)  # long enough for the lease, and for the next boot to fail
        assert len(host.incarnations) == 1
        host.harness.runtime.available = True
        await host.online(incarnations=2)
        assert host.broker.subscription is not subscription


async def test_a_boot_that_was_given_up_announces_itself_anew() -> None:
    async with running_host() as host:
        temp = host.harness.command(TEMP, input=1)
        host.harness.server.may_infer.clear()
        await host.send(temp)
        await host.in_phase(temp, Phase.INFERRING)
        await host.control(renounce=True, incarnation="another")
        await host.done(CREATE, job="job-2")
        assert len(host.incarnations) == 1
        await host.control(renounce=True)
        await host.online(incarnations=2)
        names = [it.name for it in host.harness.runtime.containers.values()]
        assert names == ["modelyard-job-2-1"]
        assert host.ends_of(temp) == []


async def test_what_could_not_be_ended_with_the_lease_is_ended_later() -> None:
    async with running_host(fence_s=SHORT_S, renewal_interval_s=BEAT_S) as host:
        host.harness.server.may_infer.clear()
        temp = host.harness.command(TEMP, input=1)
        await host.send(temp)
        await host.in_phase(temp, Phase.INFERRING)
        host.harness.runtime.available = False
        await asyncio.sleep(SHORT_S * 3)
        host.harness.runtime.available = True

        async def gone() -> bool:
            return not host.harness.runtime.containers

        await eventually(gone)
