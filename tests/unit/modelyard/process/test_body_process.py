"""The process that reads bodies: what it gives back, and what becomes of a body that ends it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from modelyard.process import body_process
from modelyard.process.body_process import (
    BodyProcess,
    BodyProcessEndedError,
    BodyProcessError,
    BodyProcessUnavailableError,
)
from tests.support.large_bodies import MIB
from tests.support.waiting import eventually


@pytest.fixture
async def process() -> AsyncIterator[BodyProcess]:
    made = BodyProcess("tests.support.body_tasks")
    yield made
    await made.close()


def pid_of(process: BodyProcess) -> int:
    assert process._process is not None
    return process._process.pid


async def test_bodies_of_any_size_come_back_in_their_parts(process: BodyProcess) -> None:
    for body in (b"", b"x", os.urandom(8 * MIB)):
        parts = await process.ask("echo", {"times": 3}, body)
        assert [json.loads(header)["number"] for header, _ in parts] == [0, 1, 2]
        assert all(blob == body for _, blob in parts)


async def test_those_who_ask_at_once_get_each_their_own(process: BodyProcess) -> None:
    asking = [process.ask("echo", {"times": 1}, b"%d" % number) for number in range(50)]
    assert [part[0][1] for part in await asyncio.gather(*asking)] == [
        b"%d" % number for number in range(50)
    ]


@pytest.mark.parametrize(("task", "said"), [("fail", "ValueError"), ("hoard", "memory")])
async def test_a_task_that_fails_says_so_and_the_next_one_is_done(
    process: BodyProcess, task: str, said: str
) -> None:
    with pytest.raises(BodyProcessError, match=said) as raised:
        await process.ask(task, {}, b"")
    assert type(raised.value) is BodyProcessError
    assert await process.ask("echo", {"times": 1}, b"x") == [(b'{"number": 0}', b"x")]


async def test_a_process_that_was_killed_is_started_again(
    process: BodyProcess, tmp_path: Path
) -> None:
    given = {"once": str(tmp_path / "died")}
    assert await process.ask("die", given, b"") == [(b"{}", b"alive")]


async def test_a_body_that_ends_it_twice_is_given_up(process: BodyProcess) -> None:
    with pytest.raises(BodyProcessEndedError, match="ended"):
        await process.ask("die", {}, b"")
    assert await process.ask("echo", {"times": 1}, b"x")


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
async def test_a_process_that_cannot_be_started_is_not_taken_for_the_bodys_fault(
    process: BodyProcess, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr("modelyard.process.body_process.sys.executable", program)
    with pytest.raises(BodyProcessUnavailableError, match="started"):
        await process.ask("echo", {"times": 1}, b"x")
    monkeypatch.undo()
    assert await process.ask("echo", {"times": 1}, b"x")


async def test_a_body_that_takes_too_long_is_given_up(
    process: BodyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.ask("echo", {"times": 0}, b"")
    monkeypatch.setattr(body_process, "WITHIN_S", 0.05)
    with pytest.raises(BodyProcessEndedError, match="not read within"):
        await process.ask("hang", {}, b"")
    monkeypatch.undo()
    assert await process.ask("echo", {"times": 1}, b"x")


async def test_who_goes_away_leaves_no_answer_for_the_next_one(process: BodyProcess) -> None:
    await process.ask("echo", {"times": 0}, b"")
    asking = asyncio.create_task(process.ask("hang", {}, b""))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await process.ask("echo", {"times": 1}, b"x") == [(b'{"number": 0}', b"x")]


async def test_it_knows_no_secret_of_the_service(
    process: BodyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_MONGO_URL", "mongodb://user:canary@host")
    [(names, _)] = await process.ask("environment", {}, b"")
    assert "PATH" in json.loads(names)
    assert "MODELYARD_MONGO_URL" not in json.loads(names)


async def test_it_ends_when_the_service_does(process: BodyProcess) -> None:
    await process.ask("echo", {"times": 0}, b"")
    pid = pid_of(process)
    os.kill(pid, 15)  # as systemd sends it to both: the service decides
    assert await process.ask("echo", {"times": 1}, b"x")
    assert pid_of(process) == pid
    await process.close()

    async def gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return False
        return True

    await eventually(gone, what="the end of the process")
