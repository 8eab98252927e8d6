"""Messages that come too often, too late, or make no sense."""

import asyncio
import json
import random
import uuid
from collections import Counter

import pytest

from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.process.crash_points import VARIABLE
from tests.faults.load import Request
from tests.faults.wire import OURS, Wire, open_wire
from tests.faults.yard import Yard
from tests.support.waiting import eventually

OFTEN = "A message 1,000 times, some with another payload"
POISON = "Poison message: not JSON, too big, unknown verb, crashes the consumer"
REPORTS = "Reports shuffled, doubled, after the end"

TIMES = 1_000
OTHER_EVERY = 20
TOO_BIG = 9 << 20
BEFORE_ACK = "dispatcher.intake.before_ack"
pytestmark = pytest.mark.faults


@pytest.mark.fault(OFTEN)
async def test_a_message_that_comes_1_000_times_runs_once(yard: Yard) -> None:
    key = uuid.uuid4().hex
    operation_id = operation_id_for_key(key)
    body = {
        "job_id": yard.job_id(),
        "operation_type": "TEMP",
        "model": "load-http",
        "input": {"tag": operation_id},
    }
    async with open_wire(yard.fleet.amqp_url) as wire:
        for start in range(0, TIMES, 100):
            await asyncio.gather(
                *(
                    wire.publish(
                        json.dumps(
                            body | {"priority": 7} if (start + n) % OTHER_EVERY == 1 else body
                        ).encode(),
                        headers={"Idempotency-Key": key},
                        content_type="application/json",
                    )
                    for n in range(100)
                )
            )
    yard.doors.ledger.accept(operation_id)
    assert (await yard.ended(operation_id))["state"] == "SUCCEEDED"
    await yard.holds()
    assert len(yard.collector.of(operation_id)) == 1
    assert await yard.database.count("operations", {"job_id": body["job_id"]}) == 1
    (note,) = await yard.database.all("audit", {"operation_id": operation_id})
    assert note["kind"] == "payload_mismatch"


UNREADABLE = {
    "invalid_json": [b"\x00\xff\xfe", b"{", b'{"job_id": NaN}', b"9" * 5_000, b"[" * 100_000],
    "body_too_large": [b"[" + b"0," * (TOO_BIG // 2) + b"0]"],
    "batch_too_large": [b"[" + b"{}," * 1_000 + b"{}]"],
    "invalid_request": [b"[]"],
}
REFUSED = [
    {"job_id": "j", "operation_type": "EXPLODE"},
    {"job_id": "j", "operation_type": {"$ne": ""}},
]


@pytest.mark.fault(POISON)
async def test_poison_is_buried_with_its_reason_and_the_neighbours_get_through(yard: Yard) -> None:
    before = await _reasons(yard)
    wanted = Counter({reason: len(bodies) for reason, bodies in UNREADABLE.items()})
    keys = [uuid.uuid4().hex for _ in REFUSED]
    async with open_wire(yard.fleet.amqp_url) as wire:
        neighbours = [await _neighbour(yard)]
        for body in (body for bodies in UNREADABLE.values() for body in bodies):
            await wire.publish(body, headers={"Idempotency-Key": uuid.uuid4().hex})
        neighbours.append(await _neighbour(yard))
        for key, request in zip(keys, REFUSED, strict=True):
            yard.doors.ledger.wonder(key)
            await wire.publish(json.dumps(request).encode(), headers={"Idempotency-Key": key})
        await _forge(wire)
        neighbours.append(await _neighbour(yard))

    async def buried() -> bool:
        return wanted <= await _reasons(yard) - before

    try:
        await eventually(buried, within_s=30)
    except AssertionError:
        assert await _reasons(yard) - before == wanted
    for operation_id in neighbours:
        assert (await yard.ended(operation_id))["state"] == "SUCCEEDED"
    for key in keys:
        one = await yard.ended(operation_id_for_key(key))
        assert one["state"] == "REJECTED", one
    assert all(service.running for service in yard.fleet.services.values())
    await _forget_strangers(yard)
    await yard.holds()


async def _neighbour(yard: Yard) -> str:
    body = {"job_id": yard.job_id(), "operation_type": "TEMP", "model": "load-http", "input": {}}
    return await yard.doors.submit(Request(uuid.uuid4().hex, body), by_amqp=True)


async def _forge(wire: Wire) -> None:
    """Publish what claims to be one of Modelyard's own messages and is not, signed and unsigned."""
    for user in (None, OURS):
        for kind in ("modelyard.submission.v1", "modelyard.reports.v1"):
            await wire.publish(b'{"requests": [{"operation_id": 1}]}', type=kind, user_id=user)
        for exchange, body in (
            ("modelyard.reports", b"{}"),
            ("modelyard.hosts", b'{"cancels": 3}'),
            ("modelyard.heartbeats", b"\xff"),
        ):
            await wire.publish(body, exchange=exchange, routing_key="h1", user_id=user)


async def _reasons(yard: Yard) -> Counter[str]:
    """Count the dead letters by their reasons."""
    return Counter(one["reason"] for one in await yard.database.all("dead_letters"))


async def _forget_strangers(yard: Yard) -> None:
    """Take into the ledger what our forged messages may have made: each is REJECTED."""
    known = yard.doors.ledger.accepted | yard.doors.ledger.unknown
    ours = {"source": {"$ne": "system"}}  # an earlier test's drain may have made some
    for one in await yard.database.all("operations", ours, "state"):
        if one["_id"] not in known:
            assert one["state"] == "REJECTED"
            yard.doors.ledger.unknown.add(one["_id"])


@pytest.mark.fault(POISON)
@pytest.mark.timeout(420)
async def test_a_message_whose_reader_dies_each_time_leaves_its_queue_at_the_limit(
    yard: Yard,
) -> None:
    """Whatever is wrong with it: here it can't be read, and its reader dies before it says so.

    The neighbours that wait behind it have no part in that.
    """
    await yard.stop("dispatcher", "dispatcher-2")
    before = await _reasons(yard)
    async with open_wire(yard.fleet.amqp_url) as wire:
        await wire.publish(b"{", headers={"Idempotency-Key": uuid.uuid4().hex})
    neighbours = [await _neighbour(yard) for _ in range(3)]
    for _ in range(int(JOBS_QUEUE.arguments["x-delivery-limit"]) + 1):
        await yard.launch("dispatcher", **{VARIABLE: BEFORE_ACK})
        await yard.died_at("dispatcher", BEFORE_ACK)
    await yard.launch("dispatcher-2")
    await yard.launch("dispatcher")

    async def buried() -> bool:
        return (await _reasons(yard) - before)["delivery_limit"] == 1

    await eventually(buried, within_s=30, what="the letter of the broker")
    for neighbour in neighbours:
        assert (await yard.ended(neighbour))["state"] == "SUCCEEDED"
    await yard.holds()


@pytest.mark.fault(REPORTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_reports_that_come_again_late_and_out_of_order_change_nothing(
    yard: Yard, seed: int
) -> None:
    async with open_wire(yard.fleet.amqp_url) as wire:
        hosts = list(yard.fleet.workers)
        choice = random.Random(seed)
        echo = asyncio.create_task(wire.echo("modelyard.reports", hosts, choice))
        load = await yard.load(choice=choice)
        ids = await load.run()
        for operation_id in ids:
            await yard.ended(operation_id)
        before = await _all_of(yard)
        echoed = wire.echoed

        async def more() -> bool:
            return wire.echoed > echoed or echo.done()

        await eventually(more, within_s=10, what="a report after the end")
        await yard.holds()
        assert await _all_of(yard) == before
        echo.cancel()
        await asyncio.wait((echo,))
    await yard.succeeded(ids)
    assert wire.echoed > len(ids)


async def _all_of(yard: Yard) -> dict[str, object]:
    """Return what reports could change."""
    operations = await yard.database.all("operations", None, "state", "epoch", "seq", "finished_at")
    jobs = await yard.database.all("jobs", None, "state", "generation", "host_id", "container_id")
    return {one["_id"]: one for one in [*operations, *jobs]}
