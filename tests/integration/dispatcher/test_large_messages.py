"""Large and hostile messages at the AMQP door: they end, and nobody else waits for them."""

import asyncio
import struct
from typing import Any

import aiormq
import pytest
from structlog.testing import capture_logs

from dispatcher.intake import decode
from modelyard.broker.subscription import KEPT_OF_LARGER_BYTES
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.topology import HEARTBEATS, JOBS, REPORTS, SUBMIT_KEY
from modelyard.process import body_process
from modelyard.store.records import DeadLetter
from tests.support.dispatcher.driver import DispatcherDriver
from tests.support.dispatcher.scripted_host import scripted_host
from tests.support.large_bodies import FILLS, MIB, feeling, infer, many_names
from tests.support.servers.raw_properties import raw_headers
from tests.support.waiting import eventually

HOSTILE = 16
HOSTILE_HEADERS = 200


async def letters(driver: DispatcherDriver, count: int) -> list[DeadLetter]:
    """Return the dead letters once there are so many, without their payloads."""

    async def there() -> list[DeadLetter] | None:
        page = await driver.store.dead_letters.page({}, after=None, limit=100)
        return list(page.items) if len(page.items) >= count else None

    return await eventually(there, what=f"{count} dead letters", within_s=60)


@pytest.mark.alone
async def test_a_good_message_and_a_heartbeat_do_not_wait_for_hostile_ones(
    driver: DispatcherDriver,
) -> None:
    hostile = many_names(MAX_BATCH_BYTES // 12)
    async with scripted_host(driver.broker, "h-1") as host:
        before = await eventually(lambda: driver.store.hosts.get("h-1"), what="the host")
        for number in range(HOSTILE):
            await driver.publish(hostile, key=f"hostile-{number}")
        async with feeling() as lags:
            operation_id = await driver.submit(Verb.TERMINATE)
            await host.beat()

            async def heard() -> bool:
                now = await driver.store.hosts.get("h-1")
                return now is not None and now.last_seen != before.last_seen

            async def ended() -> bool:
                found = await driver.store.operation_queries.get(operation_id)
                return found is not None and found.state is OperationState.SUCCEEDED

            await eventually(heard, what="the heartbeat", within_s=3)
            # The hostile ones before it take the body process some seconds each, in their order.
            await eventually(ended, what="the end of the good one", within_s=60)
    # Parsed on the loop each of them takes some seconds.
    assert lags.worst < 1.0
    found = await letters(driver, HOSTILE)
    assert {one.reason for one in found} == {"invalid_json"}
    assert "names" in found[0].detail


@pytest.mark.alone
async def test_200_messages_with_hostile_headers_hold_up_neither_a_good_one_nor_a_heartbeat(
    driver: DispatcherDriver,
) -> None:
    hostile = raw_headers(b"\x05voidsA" + struct.pack(">I", 120_000) + b"V" * 120_000)
    connection = await aiormq.connect(driver.broker._url)
    try:
        channel = await connection.channel()
        async with feeling() as lags:
            for number in range(HOSTILE_HEADERS):
                await channel.basic_publish(
                    b"%d" % number, exchange=JOBS.name, routing_key=SUBMIT_KEY, properties=hostile
                )
            operation_id = await driver.submit(Verb.TERMINATE)
            async with asyncio.timeout(20):
                await driver.operation(operation_id, OperationState.SUCCEEDED)
    finally:
        await connection.close()
    assert lags.worst < 1.0
    found = await letters(driver, 100)
    assert {one.reason for one in found} == {"invalid_request"}
    assert "headers" in found[0].detail


@pytest.mark.parametrize("large", [False, True])
async def test_the_key_of_a_message_with_many_headers_is_read_or_it_is_refused(
    driver: DispatcherDriver, *, large: bool
) -> None:
    """Never run under another key than its publisher's: it would run each time that it came."""
    body = infer("j-1", FILLS["text"](MIB // 4)) if large else infer("j-1", b"{}")
    few = {f"h{number}": "x" * 300 for number in range(250)}
    for key, headers in ("few", few), ("many", {f"h{number}": "" for number in range(300)}):
        for _ in range(2):
            said = {**headers, "zz": "", "Idempotency-Key": key}
            await driver.broker.publish(JOBS, SUBMIT_KEY, body, headers=said)
    await driver.operation(operation_id_for_key("few"))
    [first, *_] = await letters(driver, 1)
    assert (first.reason, "headers" in first.detail) == ("invalid_request", True)
    page = await driver.store.operation_queries.page({}, after=None, limit=9)
    assert {one.operation_id for one in page.items} <= {
        operation_id_for_key("few"),
        operation_id_for_key("many"),
    }


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "rows"])
async def test_a_large_message_is_recorded_as_a_small_one_is(
    driver: DispatcherDriver, fill: str
) -> None:
    body = infer("j-1", FILLS[fill](MIB - 256))
    await driver.publish(body, key=fill)
    [wanted] = decode.decode(body, message_type=None, key=fill)  # type: ignore[misc]
    operation = await driver.operation(wanted.operation_id)
    record = await driver.store.operation_queries.with_input(operation.operation_id)
    assert record is not None
    assert record.payload_hash == wanted.payload_hash
    assert record.input_json == wanted.input_json


@pytest.fixture
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader die less often before a message is buried, and the rests be short."""
    monkeypatch.setattr("dispatcher.service.READER_DEATHS_BEFORE_BURYING", 2)
    monkeypatch.setattr("dispatcher.service.MAX_BACKOFF_S", 0.05)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let readers of large bodies be started from this program, if there is one in the list."""
    programs: list[str] = []
    real = asyncio.create_subprocess_exec

    async def start(program: str, *arguments: str, **others: Any) -> asyncio.subprocess.Process:
        return await real(programs[0] if programs else program, *arguments, **others)

    monkeypatch.setattr("modelyard.process.body_process.asyncio.create_subprocess_exec", start)
    return programs


async def hears(event: str, times: int, logs: list[Any]) -> None:
    async def heard() -> bool:
        return [line["event"] for line in logs].count(event) >= times

    await eventually(heard, what=f"{event}, {times} times", within_s=30)


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
async def test_a_large_message_waits_for_a_reader_that_cannot_be_started_for_a_while(
    driver: DispatcherDriver, reader: list[str], program: str
) -> None:
    reader.append(program)
    with capture_logs() as logs:
        await driver.publish(infer("j-1", FILLS["text"](MIB // 4)), key="k")
        await hears("body_process.not_started", 3, logs)
    reader.clear()
    await driver.operation(operation_id_for_key("k"))
    assert not (await driver.store.dead_letters.page({}, after=None, limit=1)).items


@pytest.mark.usefixtures("short_rests")
async def test_a_large_message_whose_reader_is_killed_for_a_while_is_taken_after_that(
    driver: DispatcherDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = 4
    real = body_process._exchange

    async def killed(process: asyncio.subprocess.Process, *given: bytes) -> Any:
        nonlocal deaths
        if deaths:
            deaths -= 1
            process.kill()
        return await real(process, *given)

    monkeypatch.setattr(body_process, "_exchange", killed)
    await driver.publish(infer("j-1", FILLS["text"](MIB // 4)), key="k")
    await driver.operation(operation_id_for_key("k"))
    assert deaths == 0
    assert not (await driver.store.dead_letters.page({}, after=None, limit=1)).items
    deaths = 1_000
    await driver.publish(infer("j-1", FILLS["text"](MIB // 4)), key="deadly")
    neighbour = await driver.submit(Verb.TERMINATE, "j-2")
    [letter] = await letters(driver, 1)
    assert letter.reason == "internal"
    await driver.operation(neighbour)


async def test_a_large_batch_is_taken_with_what_is_wrong_in_it(driver: DispatcherDriver) -> None:
    good = infer("j-1", FILLS["pixels"](MIB - 4_096))
    await driver.publish(b"[" + b",".join([good] * 7) + b',{"job_id":"j-2"}]', key="k")
    wanted = operation_id_for_key
    await driver.operation(wanted("k/6"))
    rejected = await driver.operation(wanted("k/7"), OperationState.REJECTED)
    assert rejected.error is not None
    assert rejected.error.code == "invalid_request"


async def test_a_large_message_has_its_priority_too(driver: DispatcherDriver) -> None:
    await driver.publish(infer("j-1", FILLS["text"](MIB // 4)), key="k", priority=7)
    assert (await driver.operation(operation_id_for_key("k"))).priority == 7


async def test_of_a_message_larger_than_any_valid_one_the_beginning_is_kept(
    driver: DispatcherDriver,
) -> None:
    body = b"[" + b" " * (3 * MAX_BATCH_BYTES)
    await driver.publish(body, key="k")
    [letter] = await letters(driver, 1)
    whole = await driver.store.dead_letters.get(letter.dead_letter_id)
    assert whole is not None
    assert whole.reason == "body_too_large"
    assert str(len(body)) in whole.detail
    assert whole.payload_bytes == len(body)
    assert whole.payload == body[:KEPT_OF_LARGER_BYTES]


async def test_the_size_that_a_publisher_writes_into_its_headers_counts_for_nothing(
    driver: DispatcherDriver,
) -> None:
    headers = {"x-modelyard-body-bytes": "999999", "x-modelyard-reason": "internal"}
    await driver.broker.publish(JOBS, SUBMIT_KEY, b"{", headers=headers)
    [letter] = await letters(driver, 1)
    assert letter.payload_bytes == 1


async def test_a_report_or_a_heartbeat_without_end_is_not_taken_apart(
    driver: DispatcherDriver,
) -> None:
    much = many_names(300_000)
    start = b'{"host_id":"h-1","incarnation":"x","inventory":'
    empty = start + b'{"items":[' + b"{}," * 40_000 + b"{}]}}"
    async with scripted_host(driver.broker, "h-1"):
        for body in (start + much + b"}", b" " * (5 * MIB), empty):
            await driver.broker.publish(REPORTS, "h-1", body)
        await driver.broker.publish(HEARTBEATS, "", much)
        found = await letters(driver, 3)
    assert {one.reason for one in found} == {"invalid_request"}
    assert all(len(one.detail) < 1_000 for one in found)
    assert len({one.detail for one in found}) == 3
