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
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.load import Request
from tests.faults.harness.raw_channel import OURS, RawChannel, open_raw_channel
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
async def test_a_message_that_comes_1_000_times_runs_once(fleet: CheckedFleet) -> None:
    key = uuid.uuid4().hex
    operation_id = operation_id_for_key(key)
    body = {
        "job_id": fleet.job_id(),
        "operation_type": "TEMP",
        "model": "load-http",
        "input": {"tag": operation_id},
    }
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        for start in range(0, TIMES, 100):
            await asyncio.gather(
                *(
                    raw.publish(
                        json.dumps(
                            body | {"priority": 7} if (start + n) % OTHER_EVERY == 1 else body
                        ).encode(),
                        headers={"Idempotency-Key": key},
                        content_type="application/json",
                    )
                    for n in range(100)
                )
            )
    fleet.doors.ledger.accept(operation_id)
    assert (await fleet.ended(operation_id))["state"] == "SUCCEEDED"
    await fleet.holds()
    assert len(fleet.collector.of(operation_id)) == 1
    assert await fleet.database.count("operations", {"job_id": body["job_id"]}) == 1
    (note,) = await fleet.database.all("audit", {"operation_id": operation_id})
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
async def test_poison_is_buried_with_its_reason_and_the_neighbours_get_through(
    fleet: CheckedFleet,
) -> None:
    before = await _reasons(fleet)
    wanted = Counter({reason: len(bodies) for reason, bodies in UNREADABLE.items()})
    keys = [uuid.uuid4().hex for _ in REFUSED]
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        neighbours = [await _neighbour(fleet)]
        for body in (body for bodies in UNREADABLE.values() for body in bodies):
            await raw.publish(body, headers={"Idempotency-Key": uuid.uuid4().hex})
        neighbours.append(await _neighbour(fleet))
        for key, request in zip(keys, REFUSED, strict=True):
            fleet.doors.ledger.wonder(key)
            await raw.publish(json.dumps(request).encode(), headers={"Idempotency-Key": key})
        await _forge(raw)
        neighbours.append(await _neighbour(fleet))

    async def buried() -> bool:
        return wanted <= await _reasons(fleet) - before

    try:
        await eventually(buried, within_s=30)
    except AssertionError:
        assert await _reasons(fleet) - before == wanted
    for operation_id in neighbours:
        assert (await fleet.ended(operation_id))["state"] == "SUCCEEDED"
    for key in keys:
        one = await fleet.ended(operation_id_for_key(key))
        assert one["state"] == "REJECTED", one
    assert all(service.running for service in fleet.processes.services.values())
    await _forget_strangers(fleet)
    await fleet.holds()


async def _neighbour(fleet: CheckedFleet) -> str:
    body = {"job_id": fleet.job_id(), "operation_type": "TEMP", "model": "load-http", "input": {}}
    return await fleet.doors.submit(Request(uuid.uuid4().hex, body), by_amqp=True)


async def _forge(raw: RawChannel) -> None:
    """Publish what claims to be one of Modelyard's own messages and is not, signed and unsigned."""
    for user in (None, OURS):
        for kind in ("modelyard.submission.v1", "modelyard.reports.v1"):
            await raw.publish(b'{"requests": [{"operation_id": 1}]}', type=kind, user_id=user)
        for exchange, body in (
            ("modelyard.reports", b"{}"),
            ("modelyard.hosts", b'{"cancels": 3}'),
            ("modelyard.heartbeats", b"\xff"),
        ):
            await raw.publish(body, exchange=exchange, routing_key="h1", user_id=user)


async def _reasons(fleet: CheckedFleet) -> Counter[str]:
    """Count the dead letters by their reasons."""
    return Counter(one["reason"] for one in await fleet.database.all("dead_letters"))


async def _forget_strangers(fleet: CheckedFleet) -> None:
    """Take into the ledger what our forged messages may have made: each is REJECTED."""
    known = fleet.doors.ledger.accepted | fleet.doors.ledger.unknown
    ours = {"source": {"$ne": "system"}}  # an earlier test's drain may have made some
    for one in await fleet.database.all("operations", ours, "state"):
        if one["_id"] not in known:
            assert one["state"] == "REJECTED"
            fleet.doors.ledger.unknown.add(one["_id"])


@pytest.mark.fault(POISON)
@pytest.mark.timeout(600)
async def test_a_message_whose_reader_dies_each_time_leaves_its_queue_at_the_limit(
    fleet: CheckedFleet,
) -> None:
    """Whatever is wrong with it: here it can't be read, and its reader dies before it says so.

    The neighbours that wait behind it have no part in that.
    """
    await fleet.stop("dispatcher", "dispatcher-2")
    before = await _reasons(fleet)
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        await raw.publish(b"{", headers={"Idempotency-Key": uuid.uuid4().hex})
    neighbours = [await _neighbour(fleet) for _ in range(3)]
    for _ in range(int(JOBS_QUEUE.arguments["x-delivery-limit"]) + 1):
        await fleet.launch("dispatcher", **{VARIABLE: BEFORE_ACK})
        await fleet.died_at("dispatcher", BEFORE_ACK)
    await fleet.launch("dispatcher-2")
    await fleet.launch("dispatcher")

    async def buried() -> bool:
        return (await _reasons(fleet) - before)["delivery_limit"] == 1

    await eventually(buried, within_s=30, what="the letter of the broker")
    for neighbour in neighbours:
        assert (await fleet.ended(neighbour))["state"] == "SUCCEEDED"
    await fleet.holds()


@pytest.mark.fault(REPORTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_reports_that_come_again_late_and_out_of_order_change_nothing(
    fleet: CheckedFleet, seed: int
) -> None:
    async with open_raw_channel(fleet.processes.amqp_url) as raw:
        hosts = list(fleet.processes.workers)
        choice = random.Random(seed)
        echo = asyncio.create_task(raw.echo("modelyard.reports", hosts, choice))
        load = await fleet.load(choice=choice)
        ids = await load.run()
        for operation_id in ids:
            await fleet.ended(operation_id)
        before = await _all_of(fleet)
        echoed = raw.echoed

        async def more() -> bool:
            return raw.echoed > echoed or echo.done()

        await eventually(more, within_s=10, what="a report after the end")
        await fleet.holds()
        assert await _all_of(fleet) == before
        echo.cancel()
        await asyncio.wait((echo,))
    await fleet.succeeded(ids)
    assert raw.echoed > len(ids)


async def _all_of(fleet: CheckedFleet) -> dict[str, object]:
    """Return what reports could change."""
    operations = await fleet.database.all(
        "operations", None, "state", "epoch", "seq", "finished_at"
    )
    jobs = await fleet.database.all("jobs", None, "state", "generation", "host_id", "container_id")
    return {one["_id"]: one for one in [*operations, *jobs]}
