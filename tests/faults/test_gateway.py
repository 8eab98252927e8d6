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
from tests.faults.load import Mix, Request
from tests.faults.wires import Wires
from tests.faults.yard import Yard
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


def temp(yard: Yard) -> Request:
    body = {"job_id": yard.job_id(), "operation_type": "TEMP", "model": "load-http", "input": {}}
    return Request(uuid.uuid4().hex, body)


@pytest.mark.fault(ORDINARY)
async def test_without_a_fault_everything_holds(yard: Yard) -> None:
    load = await yard.load()
    ids = await load.run()
    assert len(ids) == load.mix.operations
    await yard.holds()
    await yard.succeeded(ids)


@pytest.mark.fault(KILLED)
@pytest.mark.parametrize("point", POINTS)
async def test_a_request_that_killed_the_gateway_is_one_operation_when_it_is_repeated(
    yard: Yard, point: str
) -> None:
    await yard.stop("gateway")
    await yard.launch("gateway", **{VARIABLE: point})
    await yard.ready()
    request = temp(yard)
    yard.doors.ledger.wonder(request.key)
    assert not await yard.doors.post(request)
    await yard.died_at("gateway", point)
    await _repeated_is_one_operation(yard, request)
    await yard.holds()


@pytest.mark.faults
@pytest.mark.fault(KILLED)
async def test_a_gateway_that_dies_before_the_confirm_of_what_rabbitmq_has_leaves_one_operation(
    wires: Wires,
) -> None:
    yard = wires.yard
    request = temp(yard)
    yard.doors.ledger.wonder(request.key)
    # The message is the only way in, so that its operation shows that the broker has it.
    await wires.gateway_mongo.swallow(Fault.BLACKHOLE)
    await wires.gateway_amqp.swallow(Fault.NO_ANSWERS)
    posting = asyncio.create_task(asked(yard, request))
    await _is_there(yard, request.operation_id)
    assert not posting.done()
    await yard.kill("gateway")
    with pytest.raises(httpx2.TransportError):
        await posting
    await asyncio.gather(wires.gateway_mongo.heal(), wires.gateway_amqp.heal())
    await _repeated_is_one_operation(yard, request)
    await yard.holds()


@pytest.mark.faults
@pytest.mark.fault(SIGTERM)
async def test_a_gateway_that_is_stopped_answers_those_who_wait_and_ends(yard: Yard) -> None:
    job_id = yard.job_id()
    await yard.loaded(job_id)
    long_one = await yard.submit("INFER", job_id, input={"sleep": 12})
    await yard.running_state(long_one)
    path = f"/v1/operations/{long_one}"
    polls = [asyncio.create_task(yard.http.get(path, params={"wait": 30})) for _ in range(10)]
    load = await yard.load(Mix(amqp=0))
    loading = asyncio.create_task(load.run())
    await _some_accepted(yard)
    began = time.monotonic()
    yard.service("gateway").daemon.terminate()
    for poll in polls:
        assert (await poll).json()["state"] == "RUNNING"
    assert time.monotonic() - began < 5
    await yard.gone("gateway", within_s=EXIT_S - (time.monotonic() - began))
    with pytest.raises(httpx2.TransportError):
        await yard.http.get("/livez")
    await yard.launch("gateway")
    await loading
    await yard.holds()


@pytest.mark.faults
@pytest.mark.fault(SIGTERM)
async def test_a_gateway_that_is_stopped_refuses_what_comes_and_answers_what_was_there(
    yard: Yard,
) -> None:
    load = await yard.load(Mix(amqp=0))
    loading = asyncio.create_task(load.run())
    await _some_accepted(yard)
    request = temp(yard)
    yard.doors.ledger.wonder(request.key)
    async with httpx2.AsyncClient(base_url=yard.fleet.url, trust_env=False) as kept:
        await kept.get("/livez")
        async with _half_sent(yard, request) as (posting, rest):
            await yard.http.get("/livez")  # the gateway has read what was sent before this
            yard.service("gateway").daemon.terminate()
            began = time.monotonic()
            await _stopping(yard)
            steps: list[str] = []
            after = await kept.get("/v1/operations", extensions={"trace": _noting(steps)})
            assert "http11.send_request_headers.started" in steps
            assert "connection.connect_tcp.started" not in steps
            for answer in (after, await asked(yard, temp(yard))):
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"]
                assert answer.headers["Connection"] == "close"
            rest.set()
            assert (await posting).status_code == 202
    yard.doors.ledger.accept(request.operation_id)
    await yard.gone("gateway", within_s=EXIT_S - (time.monotonic() - began))
    await yard.launch("gateway")
    await loading
    await yard.holds()


@pytest.mark.faults
@pytest.mark.fault(CUT)
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.BLACKHOLE])
async def test_a_gateway_that_is_cut_off_says_so_at_once_and_comes_back(
    wires: Wires, fault: Fault
) -> None:
    yard = wires.yard
    both = (wires.gateway_amqp, wires.gateway_mongo)
    for proxies, status in [((both[0],), 202), ((both[1],), 202), (both, 503)]:
        await asyncio.gather(*(break_wire(proxy, fault) for proxy in proxies))
        for _ in range(3):
            request = temp(yard)
            yard.doors.ledger.wonder(request.key)
            began = time.monotonic()
            answer = await asked(yard, request)
            assert answer.status_code == status, answer.text
            assert time.monotonic() - began < UNSENT_S
            if status == 202:
                yard.doors.ledger.accept(request.operation_id)
        await asyncio.gather(*(proxy.heal() for proxy in proxies))
        yard.invariants.disturbed()
        await yard.ready(within_s=40)
    load = await yard.load()
    await load.run()
    await yard.holds()


@pytest.mark.faults
@pytest.mark.fault(BLOCKED)
async def test_a_gateway_blocked_for_40_s_makes_one_operation_of_what_is_asked_again(
    yard: Yard,
) -> None:
    """Its event loop is: whoever asks meanwhile gives up and asks again, with the same key."""
    await yard.stop("gateway")
    await yard.launch("gateway", **{VARIABLE: f"{BLOCKS_AT}:block={BLOCKED_S}"})
    await yard.ready()
    load = await yard.load(pause_s=0.1, one_door=True)
    loading = asyncio.create_task(load.run())
    await yard.came_to("gateway", BLOCKS_AT)
    began = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        await yard.http.get("/livez", timeout=BLOCKED_S / 2)
    ids = await loading
    assert time.monotonic() - began > BLOCKED_S - 2
    assert yard.doors.retries
    yard.invariants.disturbed()
    await yard.ready()
    await yard.holds()
    await yard.succeeded(ids)


async def _repeated_is_one_operation(yard: Yard, request: Request) -> None:
    """Start the gateway that died of a request and ask the same again, twice."""
    await yard.launch("gateway")
    await yard.ready()
    for _ in range(2):
        await yard.doors.submit(request)
    assert (await yard.ended(request.operation_id))["state"] == "SUCCEEDED"
    assert await yard.database.count("operations", {"job_id": request.body["job_id"]}) == 1


async def asked(yard: Yard, request: Request) -> httpx2.Response:
    return await yard.http.post(
        "/v1/jobs", json=request.body, headers={"Idempotency-Key": request.key}
    )


@asynccontextmanager
async def _half_sent(
    yard: Yard, request: Request
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
    posting = asyncio.create_task(yard.http.post("/v1/jobs", content=halves(), headers=headers))
    try:
        await begun.wait()
        yield posting, rest
    finally:
        posting.cancel()


async def _stopping(yard: Yard) -> None:
    """Return once the gateway has taken the signal in."""

    async def it_is() -> bool:
        return (await yard.http.get("/readyz")).status_code == 503

    await eventually(it_is, what="a gateway that says that it is stopping")


def _noting(steps: list[str]) -> Callable[[str, object], Awaitable[None]]:
    """Note what a client does for a request, by the names of httpcore's trace extension."""

    async def note(step: str, _details: object) -> None:
        steps.append(step)

    return note


async def break_wire(proxy: Proxy, fault: Fault) -> None:
    await (proxy.cut() if fault is Fault.CUT else proxy.swallow(fault))


async def _is_there(yard: Yard, operation_id: str) -> None:
    async def recorded() -> bool:
        return await yard.database.count("operations", {"_id": operation_id}) == 1

    await eventually(recorded, what=f"the record of {operation_id}")


async def _some_accepted(yard: Yard) -> None:
    before = len(yard.doors.ledger.accepted)

    async def more() -> bool:
        return len(yard.doors.ledger.accepted) >= before + 5

    await eventually(more, what="five more accepted")
