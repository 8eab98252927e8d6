"""The gateway while RabbitMQ, MongoDB or both are frozen, blocked, away, or wrong."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest

from deploy.local.mongodb import MongoDB
from deploy.local.ports import free_port
from deploy.local.rabbitmq import RabbitMQ
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.topology import DEAD_QUEUE, JOBS, JOBS_QUEUE, SUBMIT_KEY, Queue
from modelyard.store import Store
from tests.support.gateway import ServedGateway, frozen, messages, problem, serving
from tests.support.waiting import eventually

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]

REQUEST = {"job_id": "j-1", "operation_type": "TERMINATE"}


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving(mongo_url, amqp_url) as served:
        await served.accepted()
        yield served


async def timed(served: ServedGateway) -> tuple[httpx2.Response, float]:
    began = time.monotonic()
    answer = await served.submit(REQUEST)
    return answer, time.monotonic() - began


async def healed(served: ServedGateway) -> None:
    async def ready() -> bool:
        answer = await served.client.get("/readyz")
        return answer.status_code == 200 and answer.json()["status"] == "ready"

    await eventually(ready, within_s=40, what="a ready gateway")


async def test_a_frozen_database_holds_nobody_for_longer_than_a_second_and_then_nobody_at_all(
    served: ServedGateway, mongodb: MongoDB
) -> None:
    await served.published(1)
    with frozen(mongodb):
        first, first_s = await timed(served)
        second, second_s = await timed(served)
        read = await served.client.get("/v1/operations")
        ready = await served.client.get("/readyz")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first_s < 1.6
    assert second_s < 0.5
    assert read.status_code == 503
    assert problem(read)["code"] == "unavailable"
    assert read.headers["Retry-After"] == "1"
    assert ready.json() == {"status": "degraded", "parts": {"rabbitmq": "up", "mongodb": "down"}}
    submissions = await served.published(2)
    named = {one.operation_id for each in submissions for one in each.requests}
    assert named == {first.json()["operation_id"], second.json()["operation_id"]}
    await healed(served)
    assert (await served.client.get(f"/v1/operations/{await served.accepted()}")).status_code == 200


async def test_a_frozen_broker_leaves_the_record(served: ServedGateway, rabbitmq: RabbitMQ) -> None:
    with frozen(rabbitmq):
        first, first_s = await timed(served)
        second, second_s = await timed(served)
        read = await served.client.get(second.headers["Location"])
    assert (first.status_code, second.status_code) == (202, 202)
    assert first_s < 1.6
    assert second_s < 0.5
    assert read.json()["state"] == "QUEUED"
    await healed(served)


async def test_with_both_frozen_the_answer_is_503_within_two_seconds_until_they_are_back(
    served: ServedGateway, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    with frozen(rabbitmq, mongodb):
        outcomes = await asyncio.gather(*(timed(served) for _ in range(20)))
        later, later_s = await timed(served)
        ready = await served.client.get("/readyz")
        alive = await served.client.get("/livez")
    for answer, seconds in [*outcomes, (later, later_s)]:
        assert answer.status_code == 503
        assert seconds < 2
        assert problem(answer)["code"] == "unavailable"
        assert answer.headers["Retry-After"] == "1"
    assert later_s < 0.3
    assert ready.status_code == 503
    assert problem(ready)["parts"] == {"rabbitmq": "down", "mongodb": "down"}
    assert alive.status_code == 200
    await healed(served)
    answer, _ = await timed(served)
    assert answer.status_code == 202


async def test_a_blocked_broker_is_noticed_and_noticed_to_be_back(
    served: ServedGateway, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    watermark = ("set_vm_memory_high_watermark",)
    await asyncio.to_thread(rabbitmq.ctl, *watermark, "0.000001")
    try:
        recorded, _ = await timed(served)
        with frozen(mongodb):
            refused, seconds = await timed(served)
    finally:
        await asyncio.to_thread(rabbitmq.ctl, *watermark, "0.4")
    assert recorded.status_code == 202
    assert refused.status_code == 503
    assert seconds < 2
    await healed(served)


async def test_a_repeat_that_was_answered_503_becomes_one_operation(
    served: ServedGateway, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    headers = {"Idempotency-Key": "k"}
    with frozen(rabbitmq, mongodb):
        assert (await served.submit(REQUEST, **headers)).status_code == 503
    await healed(served)
    answer = await served.submit(REQUEST, **headers)
    assert answer.status_code == 202
    page = (await served.client.get("/v1/operations?job_id=j-1")).json()
    assert [one["operation_id"] for one in page["operations"]] == [answer.json()["operation_id"]]


async def test_a_queue_that_was_deleted_is_declared_again(
    served: ServedGateway, amqp_url: str, rabbitmq: RabbitMQ
) -> None:
    vhost = amqp_url.rpartition("/")[2]
    await asyncio.to_thread(rabbitmq.ctl, "-p", vhost, "delete_queue", JOBS_QUEUE.name)
    answer, _ = await timed(served)
    assert answer.status_code == 202  # MongoDB has it

    async def there() -> bool:
        assert (await served.submit(REQUEST)).status_code == 202
        try:
            return await served.broker.message_count(JOBS_QUEUE.name) > 0
        except BrokerUnavailableError:
            return False

    await eventually(there, what="a message in the queue")


# --- the process ---


@pytest.fixture
async def start(mongo_url: str, amqp_url: str) -> AsyncIterator[Start]:
    """Start gateways as processes; what is left of them at the end is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def process(*arguments: str, **settings: str) -> asyncio.subprocess.Process:
        variables = {
            "MODELYARD_AMQP_URL": amqp_url,
            "MODELYARD_MONGO_URL": mongo_url,
            "MODELYARD_LOG_FORMAT": "json",
            **settings,
        }
        made = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            *arguments,
            env={**os.environ, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(made)
        return made

    yield process
    for one in started:
        if one.returncode is None:
            one.kill()
            await one.wait()


async def answering(client: httpx2.AsyncClient, path: str) -> None:
    async def answers() -> bool:
        try:
            return (await client.get(path)).status_code == 200
        except httpx2.TransportError:
            return False

    await eventually(answers, what=f"200 from {path}")


def noting(steps: list[str]) -> Callable[[str, object], Awaitable[None]]:
    """Note what a client does for a request, by the names of httpcore's trace extension."""

    async def note(step: str, _details: object) -> None:
        steps.append(step)

    return note


async def stalled(port: int) -> asyncio.StreamWriter:
    """Begin a request that never comes to its end."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
    await writer.drain()
    return writer


async def refused_with_body(port: int) -> bytes:
    """Send a large body to a gateway that may not want it; return all that it answers."""
    body = b'"' + b"x" * (1 << 20) + b'"'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


async def stopping(port: int) -> None:
    """Return once a gateway refuses what comes; it still listens, for it still answers others."""

    async def refuses() -> bool:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as stranger:
            detail = (await stranger.get("/readyz")).json().get("detail")
            return bool(detail == "The gateway is stopping.")

    await eventually(refuses, what="a gateway that says that it is stopping")


async def ended(process: asyncio.subprocess.Process, *, within_s: float) -> int:
    async with asyncio.timeout(within_s):
        return await process.wait()


async def test_sigterm_answers_those_who_wait_and_ends_with_0(
    start: Start,
) -> None:
    port = free_port()
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        await answering(client, "/readyz")
        accepted = await client.post("/v1/jobs", json=REQUEST)
        path = f"{accepted.headers['Location']}?wait=60"
        steps: list[str] = []
        traced = {"trace": noting(steps)}
        waiting = [asyncio.create_task(client.get(path, extensions=traced)) for _ in range(5)]
        cancel = accepted.headers["Location"] + "/cancel?wait=60"
        cancelling = asyncio.create_task(client.post(cancel, extensions=traced))

        async def sent() -> bool:
            return steps.count("http11.send_request_body.complete") == len(waiting) + 1

        await eventually(sent, what="all of them being sent")
        # They have been read from the socket when a later request is answered.
        await client.get(path.replace("60", "0.2"))
        process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*waiting)
        assert {answer.status_code for answer in answers} == {200}, [one.text for one in answers]
        assert {answer.json()["state"] for answer in answers} == {"QUEUED"}
        assert {answer.headers["Connection"] for answer in answers} == {"close"}
        assert (await cancelling).status_code == 202
    assert await ended(process, within_s=5) == 0


async def test_sigterm_under_load_loses_nothing_that_was_answered(
    start: Start, store: Store, broker: Broker
) -> None:
    port = free_port()
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    taken: set[str] = set()
    refused: list[int] = []
    busy = asyncio.Event()

    async def keep_asking(client: httpx2.AsyncClient) -> None:
        while True:
            try:
                answer = await client.post("/v1/jobs", json=REQUEST)
            except httpx2.TransportError:
                return
            if answer.status_code == 202:
                taken.add(answer.json()["operation_id"])
            else:
                refused.append(answer.status_code)
            if len(taken) > 200:
                busy.set()

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        await answering(client, "/readyz")
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(20)]
        async with asyncio.timeout(60):
            await busy.wait()
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*asking)
    assert await ended(process, within_s=10) == 0
    assert set(refused) <= {503}
    recorded = await store.operation_queries.get_many(sorted(taken))
    found = await messages(broker, await broker.message_count(JOBS_QUEUE.name))
    bodies = b"".join(one.body for one in found).decode()
    assert {one for one in taken - recorded.keys() if one not in bodies} == set()


async def test_what_comes_after_sigterm_while_others_are_answered_gets_503(start: Start) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    async with httpx2.AsyncClient(base_url=url) as kept, httpx2.AsyncClient(base_url=url) as client:
        await answering(client, "/readyz")
        writer = await stalled(port)
        await kept.get("/livez")
        process.send_signal(signal.SIGTERM)
        await stopping(port)
        steps: list[str] = []
        after = await kept.post("/v1/jobs", json=REQUEST, extensions={"trace": noting(steps)})
        assert steps
        assert "connection.connect_tcp.started" not in steps
        new = await client.get("/v1/operations")
        for answer in (after, new):
            assert answer.status_code == 503
            assert problem(answer)["detail"] == (
                "The gateway is stopping and accepts no new requests."
            )
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["Connection"] == "close"
        assert (await client.get("/livez")).status_code == 200
        assert b" 503 " in (await refused_with_body(port)).splitlines()[0]
        writer.write(b"}" * 8)
        assert await ended(process, within_s=5) == 0
        writer.close()


async def test_a_request_that_never_ends_is_cut_off_in_time(start: Start) -> None:
    port = free_port()
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await answering(client, "/livez")
        writer = await stalled(port)
        await client.get("/livez")
        process.send_signal(signal.SIGTERM)
        assert await ended(process, within_s=25) == 0
        writer.close()


async def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    port = free_port()
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await answering(client, "/livez")
        writer = await stalled(port)
        await client.get("/livez")
        process.send_signal(signal.SIGTERM)

        await stopping(port)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await ended(process, within_s=1) == 1
        writer.close()
    _, told = await process.communicate()
    assert "process.cut_off" in told.decode().splitlines()[-1]


async def test_sigterm_ends_it_while_rabbitmq_and_mongodb_hang(
    start: Start, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    port = free_port()
    process = await start(MODELYARD_GATEWAY_PORT=str(port))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        await answering(client, "/readyz")
        with frozen(rabbitmq, mongodb):
            assert (await client.post("/v1/jobs", json=REQUEST)).status_code == 503
            process.send_signal(signal.SIGTERM)
            assert await ended(process, within_s=25) == 0


async def test_it_starts_and_serves_while_nothing_else_does_and_heals(
    start: Start, rabbitmq: RabbitMQ, mongodb: MongoDB
) -> None:
    port = free_port()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with frozen(rabbitmq, mongodb):
            await start(MODELYARD_GATEWAY_PORT=str(port))
            await answering(client, "/livez")
            assert (await client.get("/readyz")).status_code == 503
            began = time.monotonic()
            assert (await client.post("/v1/jobs", json=REQUEST)).status_code == 503
            assert time.monotonic() - began < 2
        await answering(client, "/readyz")
        assert (await client.post("/v1/jobs", json=REQUEST)).status_code == 202


async def test_a_queue_with_other_arguments_ends_it_with_a_sentence(
    start: Start, broker: Broker
) -> None:
    other = Queue(
        JOBS_QUEUE.name, JOBS, SUBMIT_KEY, {**JOBS_QUEUE.arguments, "x-delivery-limit": 3}
    )
    await broker.declare([other, DEAD_QUEUE])
    process = await start(MODELYARD_GATEWAY_PORT="0")
    async with asyncio.timeout(20):
        _, told = await process.communicate()
    assert process.returncode == 1
    last = told.decode().splitlines()[-1]
    assert "modelyard.jobs.v1" in last
    assert "x-delivery-limit" in last
    assert "Traceback" not in told.decode()


async def test_a_port_that_is_taken_ends_it_with_a_sentence(
    start: Start, served: ServedGateway
) -> None:
    port = served.url.rpartition(":")[2]
    process = await start(MODELYARD_GATEWAY_PORT=port)
    _, told = await process.communicate()
    assert process.returncode == 1
    assert told.decode().splitlines() == [
        f"modelyard-gateway: The gateway can't listen on 127.0.0.1:{port}: Address already in use."
    ]


async def test_gateways_that_share_a_port_serve_on_when_one_of_them_stops(start: Start) -> None:
    port = str(free_port())
    shared = {"MODELYARD_GATEWAY_PORT": port, "MODELYARD_GATEWAY_SHARE_PORT": "true"}
    serving_one = await start(**shared)
    await accepting(port)
    for _ in range(2):
        other = await start(**shared)
        await listening(other)
        serving_one.terminate()
        assert await ended(serving_one, within_s=25) == 0
        await accepting(port)
        serving_one = other


async def listening(process: asyncio.subprocess.Process) -> None:
    """Return once the process says in its log that it listens."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while b"gateway.listening" not in (line := await process.stderr.readline()):
            assert line, "it has ended"


async def accepting(port: str) -> None:
    """Return once a gateway at the port accepts requests, on a new connection."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        await answering(client, "/readyz")
        assert (await client.post("/v1/jobs", json=REQUEST)).status_code == 202
