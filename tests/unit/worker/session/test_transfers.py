"""Large inputs and results of a worker: in pieces, each of which the dispatcher answers."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import pytest

from modelyard.contract.catalog.entries import Profile
from modelyard.contract.content.transfers import (
    MAX_CONTENT_BYTES,
    MAX_PIECES,
    PIECE_BYTES,
    TransferAnswer,
    WorkerTransfer,
)
from modelyard.contract.errors import ErrorCode
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import MAX_RESULT_BYTES
from modelyard.contract.states import OperationState, Verb
from tests.fakes.programs import FakeBatch, FakeServer
from tests.support.waiting import eventually
from tests.support.worker.harness import HTTP_HOOKS, IMAGE, VerbHarness, model
from tests.support.worker.host import Host, running_host
from worker.execution.large_contents import LargeContents
from worker.session.transfers import AT_ONCE, PiecewiseTransfer

CREATE, LOAD, INFER, TEMP = Verb.DEPLOY_CREATE, Verb.DEPLOY_LOAD, Verb.INFER, Verb.TEMP
LARGE = b"\x89PNG" * (MAX_RESULT_BYTES // 3)


class DispatcherStandIn:
    """Answers what a worker sends: keeps results, gives an input."""

    def __init__(self, host: Host, content: bytes | None) -> None:
        self._host = host
        self._content = content
        self.results: dict[str, dict[int, bytes]] = {}
        self.asked: list[WorkerTransfer] = []
        self.gone_from = MAX_PIECES
        """The first piece of the input that is not there."""
        self.deaf = 0
        """How many more messages it does not answer."""
        self.most_waiting = 0

    async def run(self) -> None:
        seen = 0
        while True:
            await asyncio.sleep(0)
            found = [
                WorkerTransfer.model_validate_json(body)
                for _, body, _ in self._host.broker.published[seen:]
                if b'"number":' in body and b'"result":' in body
            ]
            seen = len(self._host.broker.published)
            self.most_waiting = max(self.most_waiting, len(found))
            for one in found:
                self.asked.append(one)
                if self.deaf:
                    self.deaf -= 1
                else:
                    await self._host.control(transfers=(self._answer(one),))

    def _answer(self, one: WorkerTransfer) -> TransferAnswer:
        fields = {"operation_id": one.operation_id, "epoch": one.epoch, "number": one.number}
        if one.result is not None:
            self.results.setdefault(one.operation_id, {})[one.number] = one.result.content
            return TransferAnswer.model_validate({**fields, "stored": True})
        if self._content is None or one.number >= self.gone_from:
            return TransferAnswer.model_validate(fields)
        start = one.number * PIECE_BYTES
        told = {"content_type": "image/png", "size": len(self._content)}
        piece = self._content[start : start + PIECE_BYTES]
        return TransferAnswer.model_validate({**fields, **told, "content": piece})

    def result_of(self, operation_id: str) -> bytes:
        pieces = self.results[operation_id]
        return b"".join(pieces[number] for number in sorted(pieces))


@asynccontextmanager
async def transferring(
    harness: VerbHarness, content: bytes | None = None
) -> AsyncIterator[tuple[Host, DispatcherStandIn]]:
    async with running_host(harness) as host:
        dispatcher = DispatcherStandIn(host, content)
        answering = asyncio.create_task(dispatcher.run())
        try:
            yield host, dispatcher
        finally:
            answering.cancel()


async def test_a_large_result_is_stored_piece_by_piece_before_the_end_is_reported() -> None:
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(
        200, content=LARGE, headers={"Content-Type": "image/png"}
    )
    async with transferring(harness) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        command = harness.command(INFER, input=1)
        await host.send(command)
        end = await host.ended(command)
        assert end.state is OperationState.SUCCEEDED, end
        assert end.result_stored is not None
        assert (end.result_json, end.result_content) == (None, None)
        assert end.result_stored.content_type == "image/png"
        assert end.result_stored.size == len(LARGE)
        assert end.result_stored.sha256 == hashlib.sha256(LARGE).hexdigest()
        assert dispatcher.result_of(command.operation_id) == LARGE
        assert dispatcher.most_waiting == 1


async def test_a_piece_without_an_answer_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = partial(PiecewiseTransfer, again_s=0.02)
    monkeypatch.setattr("worker.session.incarnation.PiecewiseTransfer", soon)
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(200, content=b" " * MAX_RESULT_BYTES + b"[1]")
    async with transferring(harness) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        dispatcher.deaf = 3
        command = harness.command(INFER, input=1)
        await host.send(command)
        end = await host.ended(command)
        assert end.state is OperationState.SUCCEEDED
        assert [one.number for one in dispatcher.asked[:4]] == [0, 0, 0, 0]
        assert end.result_stored is not None
        assert end.result_stored.content_type == "application/json"
        # Large JSON is kept as it came.
        assert dispatcher.result_of(command.operation_id).endswith(b" [1]")


async def test_a_worker_that_is_stopped_hands_a_large_result_over_and_begins_no_discard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = partial(PiecewiseTransfer, again_s=0.02)
    monkeypatch.setattr("worker.session.incarnation.PiecewiseTransfer", soon)
    monkeypatch.setattr("worker.session.incarnation.DRAIN_S", 5.0)
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(
        200, content=LARGE, headers={"Content-Type": "image/png"}
    )
    async with transferring(harness) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        await host.done(CREATE, job="job-2")
        dispatcher.deaf = 1_000_000
        command = harness.command(INFER, input=1)
        await host.send(command)
        await eventually(lambda: _is(bool(dispatcher.asked)), what="the first piece")
        host.stop.set()
        await eventually(lambda: _is(host.broker.attached == 0), what="the end of the consumer")
        unowned = harness.runtime.named("modelyard-job-2-1")
        await host.discard(unowned.id, job="job-2")
        dispatcher.deaf = 0
        end = await host.ended(command)
        assert end.state is OperationState.SUCCEEDED, end
        assert dispatcher.result_of(command.operation_id) == LARGE
        assert unowned.running
        await eventually(lambda: _is(host.broker.control is None), what="the end of the worker")


async def test_slow_inferences_of_one_job_keep_no_large_content_of_others_waiting() -> None:
    slow, other = FakeServer(), FakeServer()
    slow.may_infer.clear()
    slow.infer = other.infer = lambda _: httpx2.Response(
        200, content=LARGE, headers={"Content-Type": "image/png"}
    )
    servers = [other, slow]
    harness = VerbHarness(model(Profile.HTTP, max_concurrency=3))
    harness.runtime.images[IMAGE] = lambda _: servers.pop()
    async with transferring(harness, LARGE) as (host, _):
        for job in ("job-1", "job-2"):
            await host.done(CREATE, job=job)
            await host.done(LOAD, job=job)
        waiting = [harness.command(INFER, input_id=new_operation_id()) for _ in range(3)]
        await host.send(*waiting)
        await eventually(lambda: _is(slow.infers_now == 3), what="three that work")
        end = await host.done(INFER, job="job-2", input_id=new_operation_id())
        assert end.result_stored is not None
        assert [host.ends_of(one) for one in waiting] == [[], [], []]
        slow.may_infer.set()
        for one in waiting:
            assert (await host.ended(one)).state is OperationState.SUCCEEDED


async def test_few_pieces_of_a_host_are_on_their_way_at_once() -> None:
    harness = VerbHarness(model(Profile.HTTP, max_concurrency=5))
    async with transferring(harness, LARGE) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        dispatcher.deaf = 1_000_000
        asking = [harness.command(INFER, input_id=new_operation_id()) for _ in range(5)]
        await host.send(*asking)
        await eventually(lambda: _is(len(dispatcher.asked) == AT_ONCE), what="the first pieces")
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(dispatcher.asked) == AT_ONCE
        for one in asking:
            await host.cancel(one)
        for one in asking:
            assert (await host.ended(one)).state is OperationState.CANCELLED


async def test_an_input_that_is_gone_when_a_part_of_it_was_sent_ends_the_operation() -> None:
    harness = VerbHarness(model(Profile.HTTP))
    async with transferring(harness, LARGE) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        dispatcher.gone_from = 2
        command = harness.command(INFER, input_id=new_operation_id())
        await host.send(command)
        end = await host.ended(command)
        assert [one.number for one in dispatcher.asked] == [0, 1, 2]
    assert end.error is not None
    assert (end.state, end.error.code) == (OperationState.FAILED, ErrorCode.INPUT_GONE)


async def test_a_model_gets_an_uploaded_input_as_it_is() -> None:
    harness = VerbHarness(model(Profile.HTTP))
    got: list[tuple[bytes, str]] = []

    def infer(request: httpx2.Request) -> httpx2.Response:
        got.append((request.content, request.headers["Content-Type"]))
        return httpx2.Response(200, json="seen")

    harness.server.infer = infer
    async with transferring(harness, LARGE) as (host, _):
        end = await host.done(TEMP, input_id=new_operation_id())
        assert end.result_json == '"seen"'
    assert got == [(LARGE, "image/png")]


async def test_an_input_is_not_given_to_the_container_that_has_the_address_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = partial(PiecewiseTransfer, again_s=0.02)
    monkeypatch.setattr("worker.session.incarnation.PiecewiseTransfer", soon)
    harness = VerbHarness(model(Profile.HTTP))
    harness.runtime.images[IMAGE] = lambda _: FakeServer()
    async with transferring(harness, LARGE) as (host, dispatcher):
        await host.done(CREATE)
        await host.done(LOAD)
        dispatcher.deaf = 1_000_000
        command = harness.command(INFER, input_id=new_operation_id())
        await host.send(command)
        await eventually(lambda: _is(bool(dispatcher.asked)), what="the question for the input")
        ended = harness.container
        ended.exit(1)
        await host.done(CREATE, job="job-2")
        other = harness.runtime.named("modelyard-job-2-1")
        other.port = ended.port  # the engine gives the lowest address that is free
        dispatcher.deaf = 0
        end = await host.ended(command)
        assert end.error is not None
        assert (end.state, end.error.code) == (OperationState.FAILED, ErrorCode.EXITED)
        assert isinstance(other.program, FakeServer)
        assert [one for one in other.program.requests if "infer" in one] == []


async def test_an_input_that_is_gone_ends_the_operation_and_not_its_job() -> None:
    harness = VerbHarness()
    async with transferring(harness) as (host, _):
        await host.done(CREATE)
        await host.done(LOAD)
        command = harness.command(INFER, input_id=new_operation_id())
        await host.send(command)
        end = await host.ended(command)
    assert end.error is not None
    assert (end.state, end.error.code) == (OperationState.FAILED, ErrorCode.INPUT_GONE)
    assert end.job_state is None


async def test_a_hook_that_puts_the_input_into_json_can_not_take_an_uploaded_one() -> None:
    hooks = HTTP_HOOKS.model_copy(
        update={"infer": HTTP_HOOKS.infer.model_copy(update={"body": {"x": "{input}"}})}  # type: ignore[union-attr]
    )
    harness = VerbHarness(model(Profile.HTTP, hooks=hooks))
    async with transferring(harness, LARGE) as (host, dispatcher):
        command = harness.command(TEMP, input_id=new_operation_id())
        await host.send(command)
        end = await host.ended(command)
        assert dispatcher.asked == []
    assert end.error is not None
    assert end.error.code is ErrorCode.UNEXPECTED_INPUT


async def test_a_batch_may_leave_a_large_file() -> None:
    spec = model(Profile.BATCH, result_file="/out/a.png", result_type="image/png")
    harness = VerbHarness(spec, FakeBatch(files={"/out/a.png": LARGE}))
    async with transferring(harness) as (host, dispatcher):
        command = harness.command(TEMP)
        await host.send(command)
        end = await host.ended(command)
        assert end.result_stored is not None
        assert dispatcher.result_of(command.operation_id) == LARGE


async def test_a_result_beyond_the_limit_is_refused_without_sending_any_of_it() -> None:
    harness = VerbHarness()
    harness.server.infer = lambda _: httpx2.Response(
        200, content=b"x" * (MAX_CONTENT_BYTES + 1), headers={"Content-Type": "image/png"}
    )
    async with transferring(harness) as (host, dispatcher):
        command = harness.command(TEMP, input=1)
        await host.send(command)
        end = await host.ended(command)
        assert dispatcher.asked == []
    assert end.error is not None
    assert end.error.code is ErrorCode.RESULT_TOO_LARGE
    assert end.error.detail["max_bytes"] == MAX_CONTENT_BYTES


async def test_only_so_many_batches_hold_a_large_file_at_once() -> None:
    large = LargeContents(most=1)
    order: list[str] = []
    go_on = asyncio.Event()

    async def use(name: str, until: asyncio.Event | None) -> None:
        async with large.turn() as turn:
            await turn.take()
            await turn.take()  # it is one
            order.append(name)
            if until is not None:
                await until.wait()
        order.append(f"{name} ends")

    first = asyncio.create_task(use("first", go_on))
    await eventually(lambda: _is(order == ["first"]), what="the first")
    second = asyncio.create_task(use("second", None))
    await asyncio.sleep(0)
    assert order == ["first"]
    go_on.set()
    await asyncio.wait((first, second))
    assert order == ["first", "first ends", "second", "second ends"]


async def _is(value: bool) -> bool:  # noqa: FBT001 - what `eventually` asks for
    return value
