"""Faults of the gateway, and what its clients see of them."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from modelyard.process.crash_points import CRASH_POINTS, VARIABLE
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.load import Mix, Request
from tests.faults.harness.proxied_fleet import ProxiedFleet
from tests.support.servers.proxy import Fault, Proxy
from tests.support.waiting import eventually

ORDINARY = "no fault at all"
KILLED = "Gateway killed before, during, after publish"
SIGTERM = "Gateway SIGTERM under load"
CUT = "Gateway cut from RabbitMQ; from MongoDB; from both"
BLOCKED = "Event loop blocked 40 s"

POINTS = sorted(name for name in CRASH_POINTS if name.startswith("gateway."))
UNSENT_S = 2.0
EXIT_S = 25.0
BLOCKED_S = 40
BLOCKS_AT = "gateway.after_record"
"""MongoDB has the requests, and who asked has no answer."""


def temp(fleet: CheckedFleet) -> Request:
    body = {"job_id": fleet.job_id(), "operation_type": "TEMP", "model": "load-http", "input": {}}
    return Request(uuid.uuid4().hex, body)


@pytest.mark.fault(ORDINARY)
async def test_without_a_fault_everything_holds(fleet: CheckedFleet) -> None:
    load = await fleet.load()
    ids = await load.run()
    assert len(ids) == load.mix.operations
    await fleet.holds()
    await fleet.succeeded(ids)


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", POINTS)
async def test_a_request_that_killed_the_gateway_is_one_operation_when_it_is_repeated(
    fleet: CheckedFleet, point: str
) -> None:
    await fleet.stop("gateway")
    await fleet.launch("gateway", **{VARIABLE: point})
    await fleet.ready()
    request = temp(fleet)
    fleet.doors.ledger.wonder(request.key)
    assert not await fleet.doors.post(request)
    await fleet.died_at("gateway", point)
    await _repeated_is_one_operation(fleet, request)
    await fleet.holds()


@pytest.mark.faults
@pytest.mark.fault(KILLED)
async def test_a_gateway_that_dies_before_the_confirm_of_what_rabbitmq_has_leaves_one_operation(
    proxied: ProxiedFleet,
) -> None:
    fleet = proxied.fleet
    request = temp(fleet)
    fleet.doors.ledger.wonder(request.key)
    # The message is the only way in, so that its operation shows that the broker has it.
    await proxied.gateway_mongo.swallow(Fault.BLACKHOLE)
    await proxied.gateway_amqp.swallow(Fault.NO_ANSWERS)
    posting = asyncio.create_task(asked(fleet, request))
    await _is_there(fleet, request.operation_id)
    assert not posting.done()
    await fleet.kill("gateway")
    with pytest.raises(httpx2.TransportError):
        await posting
    await asyncio.gather(proxied.gateway_mongo.heal(), proxied.gateway_amqp.heal())
    await _repeated_is_one_operation(fleet, request)
    await fleet.holds()


@pytest.mark.faults
@pytest.mark.fault(SIGTERM)
async def test_a_gateway_that_is_stopped_answers_those_who_wait_and_ends(
    fleet: CheckedFleet,
) -> None:
    job_id = fleet.job_id()
    await fleet.loaded(job_id)
    long_one = await fleet.submit("INFER", job_id, input={"sleep": 12})
    await fleet.running_state(long_one)
    path = f"/v1/operations/{long_one}"
    polls = [asyncio.create_task(fleet.http.get(path, params={"wait": 30})) for _ in range(10)]
    load = await fleet.load(Mix(amqp=0))
    loading = asyncio.create_task(load.run())
    await _some_accepted(fleet)
    began = time.monotonic()
    fleet.service("gateway").daemon.terminate()
    for poll in polls:
        assert (await poll).json()["state"] == "RUNNING"
    assert time.monotonic() - began < 5
    await fleet.gone("gateway", within_s=EXIT_S - (time.monotonic() - began))
    with pytest.raises(httpx2.TransportError):
        await fleet.http.get("/livez")
    await fleet.launch("gateway")
    await loading
    await fleet.holds()


@pytest.mark.faults
@pytest.mark.fault(SIGTERM)
async def test_a_gateway_that_is_stopped_refuses_what_comes_and_answers_what_was_there(
    fleet: CheckedFleet,
) -> None:
    load = await fleet.load(Mix(amqp=0))
    loading = asyncio.create_task(load.run())
    await _some_accepted(fleet)
    request = temp(fleet)
    fleet.doors.ledger.wonder(request.key)
    async with httpx2.AsyncClient(base_url=fleet.processes.url, trust_env=False) as kept:
        await kept.get("/livez")
        async with _half_sent(fleet, request) as (posting, rest):
            await fleet.http.get("/livez")  # the gateway has read what was sent before this
            fleet.service("gateway").daemon.terminate()
            began = time.monotonic()
            await _stopping(fleet)
            steps: list[str] = []
            after = await kept.get("/v1/operations", extensions={"trace": _noting(steps)})
            assert "http11.send_request_headers.started" in steps
            assert "connection.connect_tcp.started" not in steps
            for answer in (after, await asked(fleet, temp(fleet))):
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"]
                assert answer.headers["Connection"] == "close"
            rest.set()
            assert (await posting).status_code == 202
    fleet.doors.ledger.accept(request.operation_id)
    await fleet.gone("gateway", within_s=EXIT_S - (time.monotonic() - began))
    await fleet.launch("gateway")
    await loading
    await fleet.holds()


@pytest.mark.faults
@pytest.mark.fault(CUT)
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_gateway_that_is_cut_off_says_so_at_once_and_comes_back(
    proxied: ProxiedFleet, fault: Fault
) -> None:
    fleet = proxied.fleet
    both = (proxied.gateway_amqp, proxied.gateway_mongo)
    for proxies, status in [((both[0],), 202), ((both[1],), 202), (both, 503)]:
        await asyncio.gather(*(break_wire(proxy, fault) for proxy in proxies))
        for _ in range(3):
            request = temp(fleet)
            fleet.doors.ledger.wonder(request.key)
            began = time.monotonic()
            answer = await asked(fleet, request)
            assert answer.status_code == status, answer.text
            assert time.monotonic() - began < UNSENT_S
            if status == 202:
                fleet.doors.ledger.accept(request.operation_id)
        await asyncio.gather(*(proxy.heal() for proxy in proxies))
        fleet.invariants.disturbed()
        await fleet.ready(within_s=40)
    load = await fleet.load()
    await load.run()
    await fleet.holds()


@pytest.mark.faults
@pytest.mark.fault(BLOCKED)
async def test_a_gateway_blocked_for_40_s_makes_one_operation_of_what_is_asked_again(
    fleet: CheckedFleet,
) -> None:
    """Its event loop is: whoever asks meanwhile gives up and asks again, with the same key."""
    await fleet.stop("gateway")
    await fleet.launch("gateway", **{VARIABLE: f"{BLOCKS_AT}:block={BLOCKED_S}"})
    await fleet.ready()
    load = await fleet.load(pause_s=0.1, one_door=True)
    loading = asyncio.create_task(load.run())
    await fleet.came_to("gateway", BLOCKS_AT)
    began = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        await fleet.http.get("/livez", timeout=BLOCKED_S / 2)
    ids = await loading
    assert time.monotonic() - began > BLOCKED_S - 2
    assert fleet.doors.retries
    fleet.invariants.disturbed()
    await fleet.ready()
    await fleet.holds()
    await fleet.succeeded(ids)


async def _repeated_is_one_operation(fleet: CheckedFleet, request: Request) -> None:
    """Start the gateway that died of a request and ask the same again, twice."""
    await fleet.launch("gateway")
    await fleet.ready()
    for _ in range(2):
        await fleet.doors.submit(request)
    assert (await fleet.ended(request.operation_id))["state"] == "SUCCEEDED"
    assert await fleet.database.count("operations", {"job_id": request.body["job_id"]}) == 1


async def asked(fleet: CheckedFleet, request: Request) -> httpx2.Response:
    return await fleet.http.post(
        "/v1/jobs", json=request.body, headers={"Idempotency-Key": request.key}
    )


@asynccontextmanager
async def _half_sent(
    fleet: CheckedFleet, request: Request
) -> AsyncIterator[tuple[asyncio.Task[httpx2.Response], asyncio.Event]]:
    """Begin a request; give its answer to come, and what sends the rest of its body when set."""
    body = json.dumps(request.body).encode()
    begun, rest = asyncio.Event(), asyncio.Event()

    async def halves() -> AsyncIterator[bytes]:
        yield body[:10]
        begun.set()
        await rest.wait()
        yield body[10:]

    headers = {
        "Idempotency-Key": request.key,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    posting = asyncio.create_task(fleet.http.post("/v1/jobs", content=halves(), headers=headers))
    try:
        await begun.wait()
        yield posting, rest
    finally:
        posting.cancel()


async def _stopping(fleet: CheckedFleet) -> None:
    """Return once the gateway has taken the signal in."""

    async def it_is() -> bool:
        return (await fleet.http.get("/readyz")).status_code == 503

    await eventually(it_is, what="a gateway that says that it is stopping")


def _noting(steps: list[str]) -> Callable[[str, object], Awaitable[None]]:
    """Note what a client does for a request, by the names of httpcore's trace extension."""

    async def note(step: str, _details: object) -> None:
        steps.append(step)

    return note


async def break_wire(proxy: Proxy, fault: Fault) -> None:
    await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))


async def _is_there(fleet: CheckedFleet, operation_id: str) -> None:
    async def recorded() -> bool:
        return await fleet.database.count("operations", {"_id": operation_id}) == 1

    await eventually(recorded, what=f"the record of {operation_id}")


async def _some_accepted(fleet: CheckedFleet) -> None:
    before = len(fleet.doors.ledger.accepted)

    async def more() -> bool:
        return len(fleet.doors.ledger.accepted) >= before + 5

    await eventually(more, what="five more accepted")
