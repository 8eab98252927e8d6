"""What a worker tells that its host has: never more than it may run or mount, and bounded."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelyard.contract.capacity.local_content import (
    MAX_NAME,
    MOST_CHARACTERS,
    MOST_NAMES,
    within_bounds,
)
from modelyard.contract.states import Verb
from modelyard.process.tasks import TaskGroup
from tests.fakes.programs import FakeServer
from tests.support.waiting import eventually
from tests.support.worker.harness import IMAGE, VerbHarness, model
from tests.support.worker.inventory import inventory_harness
from worker.containers import local_content
from worker.containers.local_content import LocalContentWatch, folders_in
from worker.engine.protocol import VolumeFacts

PLAIN = VolumeFacts("local", {})


def watch_of(harness: VerbHarness) -> LocalContentWatch:
    return harness.operations.containers.local_content


def filled(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "file").touch()
    return str(folder)


async def test_images_that_may_not_run_here_are_not_told() -> None:
    harness = VerbHarness(allowed=("modelyard/*",))
    harness.runtime.images["other/one:1"] = harness.runtime.images[IMAGE]
    await watch_of(harness).look()
    assert watch_of(harness).latest().images == ("docker.io/modelyard/probe:local",)


async def test_volumes_and_folders_that_may_not_be_mounted_are_not_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = filled(root / "sets" / "a")
    filled(tmp_path / "elsewhere")
    (root / "empty").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    harness = VerbHarness(dataset_roots=(str(root),), volumes=("ds-*",))
    harness.runtime.volumes = {
        "ds-1": PLAIN,
        "ds-host": VolumeFacts("local", {"type": "none", "o": "bind", "device": "/etc"}),
        "secret": PLAIN,
    }
    await watch_of(harness).look()
    assert watch_of(harness).latest().datasets == ("ds-1", str(root), str(root / "sets"), inside)


def test_a_walk_goes_two_levels_deep_and_looks_at_a_bounded_number_of_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "a" / "b" / "c")
    assert folders_in([str(tmp_path)]) == [str(tmp_path / it) for it in (".", "a", "a/b")]
    for number in range(20):
        filled(tmp_path / f"z-{number}")
    monkeypatch.setattr(local_content, "MOST_ENTRIES", 10)
    assert len(folders_in([str(tmp_path)])) <= 10
    assert folders_in([str(tmp_path / "none")]) == []


async def test_folders_of_a_share_that_never_answers_are_not_told_and_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    found = folders_in

    def walk(roots: list[str]) -> list[str]:
        answers.wait(20)
        return found(roots)

    monkeypatch.setattr(local_content, "folders_in", walk)
    monkeypatch.setattr(local_content, "WALK_S", 0.01)
    harness = VerbHarness(dataset_roots=(filled(tmp_path / "root"),))
    await watch_of(harness).look()
    assert watch_of(harness).latest().images
    assert watch_of(harness).latest().datasets == ()
    answers.set()

    async def seen() -> bool:
        await watch_of(harness).look()
        return bool(watch_of(harness).latest().datasets)

    assert await eventually(seen)


async def test_a_folder_whose_name_no_message_can_carry_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = filled(root / "a")
    filled(root / os.fsdecode(b"caf\xe9"))
    filled(root / "line\nbreak")
    harness = VerbHarness(dataset_roots=(str(root),))
    await watch_of(harness).look()
    assert watch_of(harness).latest().datasets == (str(root), inside)


async def test_a_look_that_fails_is_logged_once_and_another_one_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_content, "LOOK_S", 0.0)
    harness = VerbHarness()
    names, failures = harness.runtime.image_names, 0

    async def odd() -> list[str]:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise ValueError("nobody has thought of that")
        return await names()

    monkeypatch.setattr(harness.runtime, "image_names", odd)
    with capture_logs() as logs:
        async with asyncio.timeout(20), TaskGroup() as tasks:
            running = tasks.create_task(watch_of(harness).run())

            async def seen() -> bool:
                return bool(watch_of(harness).latest().images)

            assert await eventually(seen)
            running.cancel()
    assert [log["event"] for log in logs] == ["local_content.failed"]


async def test_after_a_walk_that_failed_there_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(_: list[str]) -> list[str]:
        raise ValueError("nobody has thought of that")

    monkeypatch.setattr(local_content, "FOLDERS_S", 0.0)
    harness = VerbHarness(dataset_roots=(filled(tmp_path / "root"),))
    with monkeypatch.context() as patch:
        patch.setattr(local_content, "folders_in", walk)
        with pytest.raises(ValueError, match="nobody"):
            await watch_of(harness).look()
    await watch_of(harness).look()
    assert watch_of(harness).latest().datasets == (str(tmp_path / "root"),)


async def test_what_was_seen_last_stays_while_the_engine_is_away() -> None:
    harness = VerbHarness()
    await watch_of(harness).look()
    harness.runtime.available = False
    await watch_of(harness).look()
    assert watch_of(harness).latest().images == ("docker.io/modelyard/probe:local",)
    harness.runtime.available = True
    harness.runtime.images.clear()
    await watch_of(harness).look()
    assert watch_of(harness).latest().images == ()


async def test_an_image_that_was_pulled_is_seen_at_once() -> None:
    harness = VerbHarness(model(image="reg.example/new:1"))
    harness.runtime.registry["reg.example/new:1"] = lambda _: FakeServer()
    async with asyncio.timeout(9), TaskGroup() as tasks:
        running = tasks.create_task(watch_of(harness).run())

        async def sees(name: str) -> bool:
            return name in watch_of(harness).latest().images

        assert await eventually(lambda: sees("docker.io/modelyard/probe:local"))
        await harness.do(Verb.DEPLOY_CREATE)
        assert await eventually(lambda: sees("reg.example/new:1"))
        running.cancel()


async def test_each_inventory_tells_it() -> None:
    async with inventory_harness() as it:
        assert (await it.look()).local.images == ()
        await watch_of(it.harness).look()
        assert (await it.look()).local.images == ("docker.io/modelyard/probe:local",)


def test_no_more_names_are_told_than_there_is_room_for() -> None:
    assert within_bounds(["a", "b", "a"]) == ("a", "b")
    assert len(within_bounds(map(str, range(10_000)))) == MOST_NAMES
    long = [f"{number:03}".ljust(500, "x") for number in range(100)]
    assert sum(map(len, within_bounds(long))) <= MOST_CHARACTERS
    odd = ["x" * (MAX_NAME + 1), "", "\udce9", "\x1b[2J", "y" * MOST_CHARACTERS]
    assert within_bounds([*odd, "café", "数据 集"]) == ("café", "数据 集")
