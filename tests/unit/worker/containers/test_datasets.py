"""Where datasets may lie, how long they are waited for, and how images are shared."""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard.contract.catalog.entries import DatasetSpec
from modelyard.contract.errors import ErrorCode, ModelyardError
from tests.fakes.programs import FakeServer
from tests.fakes.runtime import FakeRuntime
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, IMAGE, model
from worker.containers.datasets import Datasets, verify_mount
from worker.containers.images import Images
from worker.engine.image_references import AllowList
from worker.engine.plan import DatasetMount
from worker.engine.protocol import MountFacts

if TYPE_CHECKING:
    from modelyard.contract.messages import Progress


def at(root: Path) -> Datasets:
    return Datasets(FakeRuntime(host_id=HOST), [str(root)])


async def locate(datasets: Datasets, path: Path | str, **more: object) -> DatasetMount | None:
    spec = DatasetSpec(name="d", path=str(path), **{"wait_s": 0.1, **more})
    return await datasets.locate(spec, model())


async def code_of(datasets: Datasets, path: Path | str, **more: object) -> ErrorCode:
    with pytest.raises(ModelyardError) as caught:
        await locate(datasets, path, **more)
    return caught.value.code


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").touch()
    return folder


async def test_a_folder_under_a_root_is_mounted_by_its_real_path(tmp_path: Path) -> None:
    real = filled(tmp_path / "root" / "real")
    (tmp_path / "root" / "link").symlink_to(real)
    mount = await locate(at(tmp_path / "root"), tmp_path / "root" / "link")
    assert mount == DatasetMount("bind", str(real), "/data")


@pytest.mark.parametrize("path", ["/", "/var/run/docker.sock", "/etc", "{root}/../other"])
async def test_what_lies_outside_of_the_roots_is_refused(tmp_path: Path, path: str) -> None:
    filled(tmp_path / "other")
    filled(tmp_path / "root")
    asked = path.replace("{root}", str(tmp_path / "root"))
    assert await code_of(at(tmp_path / "root"), asked) is ErrorCode.DATASET_REFUSED


async def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to(filled(tmp_path / "secret"))
    asked = tmp_path / "root" / "out"
    assert await code_of(at(tmp_path / "root"), asked) is ErrorCode.DATASET_REFUSED


async def test_a_link_to_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    real = filled(tmp_path / "root" / os.fsdecode(b"caf\xe9"))
    (tmp_path / "root" / "link").symlink_to(real)
    asked = tmp_path / "root" / "link"
    assert await code_of(at(tmp_path / "root"), asked) is ErrorCode.DATASET_REFUSED


async def test_a_sibling_that_begins_like_the_root_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "root")
    asked = filled(tmp_path / "root2")
    assert await code_of(at(tmp_path / "root"), asked) is ErrorCode.DATASET_REFUSED


async def test_without_roots_every_path_is_refused(tmp_path: Path) -> None:
    datasets = Datasets(FakeRuntime(host_id=HOST), [])
    assert await code_of(datasets, filled(tmp_path / "a")) is ErrorCode.DATASET_REFUSED


async def test_a_file_is_no_dataset(tmp_path: Path) -> None:
    file = filled(tmp_path / "a") / "file"
    assert await code_of(at(tmp_path), file) is ErrorCode.DATASET_REFUSED


async def test_a_folder_that_stays_away_or_empty_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("away", "empty"):
        code = await code_of(at(tmp_path), tmp_path / name)
        assert code is ErrorCode.DATASET_UNAVAILABLE


async def test_a_folder_is_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(locate(at(tmp_path), tmp_path / "late", wait_s=5.0))
        await asyncio.wait((waiting,), timeout=0.05)
        assert not waiting.done()
        filled(tmp_path / "late")
    assert waiting.result() is not None


async def test_with_a_ready_file_other_files_are_not_enough(tmp_path: Path) -> None:
    folder = filled(tmp_path / "d")
    code = await code_of(at(tmp_path), folder, ready_file="_DONE")
    assert code is ErrorCode.DATASET_UNAVAILABLE
    (folder / "_DONE").touch()
    assert await locate(at(tmp_path), folder, ready_file="_DONE") is not None


async def test_a_share_that_never_answers_holds_one_thread_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "good")
    answers, really = threading.Event(), os.path.realpath

    def realpath(path: str) -> str:
        if path.endswith("dead"):
            answers.wait(10)
        return really(path)

    monkeypatch.setattr("worker.containers.datasets.PROBE_S", 0.05)
    monkeypatch.setattr("worker.containers.datasets.os.path.realpath", realpath)
    datasets, before = at(tmp_path), threading.active_count()
    try:
        async with asyncio.timeout(10):
            codes = await asyncio.gather(
                *(code_of(datasets, tmp_path / "dead", wait_s=0) for _ in range(50))
            )
            assert set(codes) == {ErrorCode.DATASET_UNAVAILABLE}
            stuck = [it for it in threading.enumerate() if it.name == "dataset"]
            assert threading.active_count() <= before + 1
            assert all(it.daemon for it in stuck)
            assert await locate(datasets, tmp_path / "good") is not None
    finally:
        answers.set()


async def test_a_volume_must_exist() -> None:
    runtime = FakeRuntime(host_id=HOST)
    datasets = Datasets(runtime, [], ["*"])
    spec = DatasetSpec(name="d", volume="v")
    with pytest.raises(ModelyardError) as caught:
        await datasets.locate(spec, model())
    assert caught.value.code is ErrorCode.DATASET_UNAVAILABLE
    runtime.add_volume("v")
    assert await datasets.locate(spec, model()) == DatasetMount("volume", "v", "/data")


async def volume_code(
    runtime: FakeRuntime, allowed: list[str], name: str = "ds-1"
) -> ErrorCode | None:
    datasets = Datasets(runtime, [], allowed)
    try:
        await datasets.locate(DatasetSpec(name="d", volume=name), model())
    except ModelyardError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [([], True), (["other"], True), (["ds"], True), (["ds-*"], False), (["ds-1"], False)],
)
async def test_a_volume_is_mounted_only_if_the_host_allows_its_name(
    allowed: list[str], *, refused: bool
) -> None:
    runtime = FakeRuntime(host_id=HOST)
    runtime.add_volume("ds-1")
    expected = ErrorCode.DATASET_REFUSED if refused else None
    assert await volume_code(runtime, allowed) is expected


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("local", {"type": "none", "o": "bind", "device": "/"}),
        ("local", {"type": "nfs", "o": "addr=10.0.0.1", "device": ":/export"}),
        ("local", {"device": "/etc"}),
        ("rexray", {}),
    ],
)
async def test_an_allowed_volume_that_could_be_any_folder_is_refused(
    driver: str, options: dict[str, str]
) -> None:
    runtime = FakeRuntime(host_id=HOST)
    runtime.add_volume("ds-1", driver, **options)
    runtime.add_volume("ds-2", size="1g")
    with pytest.raises(ModelyardError, match="MODELYARD_WORKER_ALLOWED_VOLUMES"):
        await Datasets(runtime, [], ["d"]).locate(DatasetSpec(name="d", volume="ds-1"), model())
    with pytest.raises(ModelyardError, match="not a plain one"):
        await Datasets(runtime, [], ["*"]).locate(DatasetSpec(name="d", volume="ds-1"), model())
    assert await volume_code(runtime, ["*"], "ds-2") is None


@pytest.mark.parametrize(
    ("mounts", "seen"),
    [
        ([("bind", "/srv/d", "/data", True)], True),
        ([("bind", "/srv/d", "/data", False)], False),
        ([("bind", "/srv/e", "/data", True)], False),
        ([("volume", "/srv/d", "/data", True)], False),
        ([("bind", "/srv/d", "/data", True), ("tmpfs", "", "/data", False)], False),
        ([("bind", "/srv/d", "/data", True), ("volume", "x", "/data/cache", False)], False),
        ([("bind", "/srv/d", "/data", True), ("tmpfs", "", "/tmp", False)], True),
        ([("tmpfs", "", "/data", True)], False),
        ([], False),
    ],
)
async def test_a_dataset_is_there_only_if_nothing_else_is_in_its_place(
    mounts: list[tuple[str, str, str, bool]], *, seen: bool
) -> None:
    runtime = FakeRuntime(host_id=HOST)
    facts = replace(
        runtime.add_foreign("x").facts(),
        mounts=tuple(MountFacts(kind, source, at, read_only=ro) for kind, source, at, ro in mounts),
    )
    expected = DatasetMount("bind", "/srv/d", "/data")
    if seen:
        verify_mount(facts, "/data", expected)
        return
    with pytest.raises(ModelyardError) as caught:
        verify_mount(facts, "/data", expected)
    assert caught.value.code is ErrorCode.DATASET_UNAVAILABLE


async def test_a_model_without_a_mount_point_gets_no_dataset() -> None:
    datasets = Datasets(FakeRuntime(host_id=HOST), [])
    spec = DatasetSpec(name="d", volume="v")
    assert await datasets.locate(spec, model(dataset_mount=None)) is None


class Pulling:
    """An engine without the image, whose pulls hang until they may end."""

    def __init__(self) -> None:
        self.runtime = FakeRuntime(host_id=HOST)
        self.runtime.registry[IMAGE] = lambda _: FakeServer()
        self.runtime.pull_may_end.clear()
        self.images = Images(self.runtime, AllowList(["*"]))
        self.told: list[Progress] = []

    async def ensure(self) -> ErrorCode | None:
        try:
            await self.images.ensure(IMAGE, lambda: None, self.told.append)
        except ModelyardError as error:
            return error.code
        return None

    async def begun(self, pulls: int) -> None:
        async def enough() -> bool:
            return len(self.runtime.pulls) >= pulls

        await eventually(enough)


async def test_who_asks_while_an_image_is_pulled_shares_the_pull() -> None:
    pulling = Pulling()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(pulling.ensure()) for _ in range(5)]
        await pulling.begun(1)
        pulling.runtime.pull_may_end.set()
    assert [task.result() for task in asking] == [None] * 5
    assert len(pulling.runtime.pulls) == 1


async def test_who_shares_a_pull_shares_its_failure() -> None:
    pulling = Pulling()
    pulling.runtime.registry.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(pulling.ensure()) for _ in range(3)]
    assert {task.result() for task in asking} == {ErrorCode.IMAGE_NOT_FOUND}


async def test_when_the_one_who_pulls_goes_away_another_pulls() -> None:
    pulling = Pulling()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(pulling.ensure())
        await pulling.begun(1)
        second = tasks.create_task(pulling.ensure())
        await asyncio.wait((second,), timeout=0.02)
        first.cancel()
        await pulling.begun(2)
        pulling.runtime.pull_may_end.set()
    assert second.result() is None


async def test_progress_is_throttled_but_its_end_is_told() -> None:
    pulling = Pulling()
    pulling.runtime.pull_may_end.set()
    pulling.runtime.pull_steps = [(step, 1_000) for step in range(1, 1_001)]
    await pulling.ensure()
    assert len(pulling.told) < 10
    assert pulling.told[-1].current == 1_000


async def test_an_image_that_is_there_is_not_pulled() -> None:
    pulling = Pulling()
    pulling.runtime.images[IMAGE] = lambda _: FakeServer()
    assert await pulling.ensure() is None
    assert pulling.runtime.pulls == []
