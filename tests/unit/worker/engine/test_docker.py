"""The Docker runtime against an engine that hangs, refuses and answers nonsense."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from modelyard.contract.retries import is_retried
from modelyard.contract.states import Verb
from tests.support.waiting import eventually
from tests.support.worker.harness import HOST, VerbHarness
from tests.support.worker.scripted_engine import ID, ScriptedEngine, document, scripted_engine
from worker.containers.planning import PlanRules, plan_container
from worker.engine.docker.documents import ICC_OPTION
from worker.engine.docker.runtime import DockerRuntime
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ContainerPlan
from worker.engine.protocol import (
    Address,
    ContainerRuntime,
    DiskFullError,
    EngineRefusedError,
    EngineUnavailableError,
    FileUnreadableError,
    ImageDeniedError,
    ImageNotFoundError,
    ImagePullFailedError,
    NameConflictError,
    NoSuchContainerError,
    StartRefusedError,
)

Both = tuple[ScriptedEngine, DockerRuntime]
Call = Callable[[ContainerRuntime], Awaitable[object]]

PULL = "POST /images/create"
CREATE = "POST /containers/create"
NAME = "modelyard-job-1-1"


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with asyncio.timeout(20), scripted_engine(tmp_path) as made:
        yield made


@asynccontextmanager
async def closed_after(runtime: DockerRuntime) -> AsyncIterator[DockerRuntime]:
    try:
        yield runtime
    finally:
        await runtime.close()


def plan(image: str = "busybox") -> ContainerPlan:
    command = VerbHarness().command(Verb.DEPLOY_CREATE)
    return replace(plan_container(command, None, PlanRules(host_id=HOST)), image=image)


CALLS: dict[str, Call] = {
    PULL: lambda it: it.ensure_image("x.example/x:1", lambda _: None),
    f"GET /containers/{ID}/logs": lambda it: it.stdout_tail(ID, max_bytes=10),
    f"GET /containers/{ID}/archive": lambda it: it.read_file(ID, "/x", max_bytes=10),
    f"POST /containers/{ID}/wait": lambda it: it.wait_exit(ID),
    f"GET /containers/{ID}/json": lambda it: it.inspect(ID),
    "GET /containers/json": lambda it: it.list_uninspected(),
    "GET /events": lambda it: it.watch(lambda: None),
}


@pytest.mark.parametrize("asked", CALLS)
async def test_a_call_that_is_cancelled_holds_no_connection(both: Both, asked: str) -> None:
    engine, runtime = both
    engine.answers[asked] = engine.hang
    calling = asyncio.ensure_future(CALLS[asked](runtime))

    async def hangs() -> bool:
        return engine.open == 1

    await eventually(hangs)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling

    async def unassign() -> bool:
        return engine.open == 0

    # While the task, and with it every frame of the call, is still held.
    await eventually(unassign, what="the engine's own end of it")
    assert calling.cancelled()
    for client in (runtime._docker, runtime._streams):
        assert len(client.connector._acquired) == 0


async def test_many_waits_do_not_keep_a_stop_from_the_engine(both: Both) -> None:
    engine, runtime = both
    engine.answers[f"POST /containers/{ID}/wait"] = engine.hang
    engine.answers[f"POST /containers/{ID}/stop"] = (204, "")
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(runtime.wait_exit(ID)) for _ in range(120)]

        async def all_hang() -> bool:
            return engine.open == len(waits)

        await eventually(all_hang)
        await runtime.stop(ID, 0.0)
        for wait in waits:
            wait.cancel()


def writer() -> ContainerPlan:
    """Return a container that may write 1000 bytes to its root file system."""
    made = plan()
    return replace(made, read_only=False, labels=replace(made.labels, disk=1000))


def info_of(driver: str, backing: str) -> dict[str, object]:
    return {"Driver": driver, "DriverStatus": [["Backing Filesystem", backing], ["x", "y"]]}


@pytest.mark.parametrize(
    ("driver", "backing", "limit"),
    [
        ("overlay2", "xfs", {"size": "1250"}),
        ("zfs", "", {"size": "1250"}),
        ("overlay2", "extfs", None),
        ("overlayfs", "xfs", None),
        ("btrfs", "xfs", None),
        ("windowsfilter", "", None),
    ],
)
async def test_the_storage_driver_limits_what_it_can(
    both: Both, driver: str, backing: str, limit: object
) -> None:
    engine, runtime = both
    engine.answers["GET /info"] = info_of(driver, backing)
    engine.answers[CREATE] = {"Id": ID}
    await runtime.facts()
    await runtime.create(writer())
    assert engine.bodies[CREATE]["HostConfig"].get("StorageOpt") == limit
    await runtime.create(replace(writer(), read_only=True))
    assert "StorageOpt" not in engine.bodies[CREATE]["HostConfig"]


@pytest.mark.parametrize("status", [400, 500])
async def test_a_storage_driver_that_can_not_limit_is_asked_once(both: Both, status: int) -> None:
    engine, runtime = both
    engine.answers["GET /info"] = info_of("overlay2", "xfs")
    said = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"

    async def create(request: web.Request) -> web.Response:
        if "StorageOpt" in (await request.json())["HostConfig"]:
            return web.json_response({"message": said}, status=status)
        return web.json_response({"Id": ID})

    engine.answers[CREATE] = create
    await runtime.facts()
    assert await runtime.create(writer()) == ID
    await runtime.facts()
    assert await runtime.create(writer()) == ID
    assert engine.asked.count(CREATE) == 3


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("0123456789ab", "docker.io/library/0123456789ab:latest"),
        ("sha256:" + "0" * 64, "docker.io/library/sha256:" + "0" * 64),
        ("modelyard/digits:local", "docker.io/modelyard/digits:local"),
        ("r.example:5000/a/b", "r.example:5000/a/b:latest"),
    ],
)
async def test_an_image_is_never_named_so_that_it_could_be_an_id(
    both: Both, image: str, full: str
) -> None:
    engine, runtime = both

    async def pulled(request: web.Request) -> web.Response:
        assert request.query["fromImage"] == full
        assert "tag" not in request.query
        engine.answers[f"GET /images/{full}/json"] = {"Id": "sha256:1"}
        return web.Response(text='{"status": "Pulling"}\r\n{"status": "done"}\r\n')

    engine.answers[PULL] = pulled
    engine.answers[CREATE] = {"Id": ID}
    await runtime.ensure_image(image, lambda _: None)
    assert await runtime.create(plan(image)) == ID
    assert engine.bodies[CREATE]["Image"] == full
    images = {asked for asked in engine.asked if "/images/" in asked}
    assert images == {f"GET /images/{full}/json", PULL}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"error": "manifest unknown"}, ImageNotFoundError),
        ({"error": "name unknown"}, ImageNotFoundError),
        ({"error": "pull access denied for x, repository does not exist"}, ImageDeniedError),
        ({"error": "unauthorized"}, ImageDeniedError),
        ({"error": 'Head "x": no basic auth credentials'}, ImageDeniedError),
        ({"error": "error parsing HTTP 403 response body"}, ImageDeniedError),
        ({"error": "toomanyrequests"}, ImagePullFailedError),
        ({"error": "write /var/lib/x: no space left on device"}, DiskFullError),
        ({"error": "dial tcp: lookup x: not found"}, ImagePullFailedError),
        ("nonsense", EngineUnavailableError),
    ],
)
async def test_a_pull_that_fails_on_its_way_says_why(
    both: Both, line: object, error: type[Exception]
) -> None:
    engine, runtime = both

    async def failing(_: web.Request) -> web.Response:
        return web.Response(text=f'{{"status": "Pulling"}}\r\n{json.dumps(line)}\r\n')

    engine.answers[PULL] = failing
    with pytest.raises(error):
        await runtime.ensure_image("x.example/x:1", lambda _: None)


OURS: dict[str, Call] = {
    "GET /version": lambda it: it.ping(),
    "GET /info": lambda it: it.facts(),
    "GET /containers/json": lambda it: it.list_uninspected(),
    "GET /networks": lambda it: it.ensure_network(),
    "GET /images/json": lambda it: it.image_names(),
    "GET /volumes": lambda it: it.all_volumes(),
    "GET /system/df": lambda it: it.volume_sizes(),
    "GET /events": lambda it: it.watch(lambda: None),
}
READS: dict[str, Call] = {
    "GET /info": lambda it: it.facts(),
    "GET /containers/json": lambda it: it.list_uninspected(),
    f"GET /containers/{ID}/json": lambda it: it.inspect(ID),
    f"GET /containers/{ID}/logs": lambda it: it.stdout_tail(ID, max_bytes=1),
    "GET /networks": lambda it: it.ensure_network(),
    "GET /images/json": lambda it: it.image_names(),
    "GET /volumes": lambda it: it.all_volumes(),
}
MORE: dict[str, Call] = {
    f"GET /containers/{ID}/archive": lambda it: it.read_file(ID, "/x", max_bytes=1),
    "GET /images/docker.io/library/x:latest/json": lambda it: it.image("x"),
    "GET /volumes/v": lambda it: it.volume("v"),
}


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("asked", [*OURS, *READS, *MORE])
async def test_a_failure_of_its_own_is_an_engine_unavailable(
    both: Both, asked: str, status: int
) -> None:
    engine, runtime = both
    engine.answers[asked] = (status, "no")
    with pytest.raises(EngineUnavailableError):
        await {**OURS, **READS, **MORE}[asked](runtime)


@pytest.mark.parametrize("status", [400, 403, 409])
@pytest.mark.parametrize("asked", [asked for asked in (*READS, *MORE) if asked not in OURS])
async def test_what_is_refused_of_a_request_would_be_refused_again(
    both: Both, asked: str, status: int
) -> None:
    engine, runtime = both
    engine.answers[asked] = (status, "no")
    with pytest.raises((EngineRefusedError, FileUnreadableError)) as caught:
        await {**READS, **MORE}[asked](runtime)
    assert not is_retried(Verb.TEMP, caught.value.code)


@pytest.mark.parametrize("status", [400, 403, 409])
@pytest.mark.parametrize("asked", OURS)
async def test_an_engine_that_refuses_what_no_request_is_behind_is_of_no_use(
    both: Both, asked: str, status: int
) -> None:
    engine, runtime = both
    engine.answers[asked] = (status, "client version 1.41 is too old")
    with pytest.raises(EngineUnavailableError):
        await OURS[asked](runtime)


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("asked", OURS)
async def test_a_full_disk_of_an_engine_that_nobody_asked_for_room_is_no_error_of_its_own(
    both: Both, asked: str, status: int
) -> None:
    engine, runtime = both
    engine.answers[asked] = (status, "write /var/lib/docker/tmp/x: no space left on device")
    with pytest.raises(EngineUnavailableError):
        await OURS[asked](runtime)


@pytest.mark.parametrize("odd", [{"MemTotal": -1}, {"MemTotal": 1 << 60}, {"NCPU": -1}])
async def test_numbers_of_an_engine_that_no_message_takes_are_an_engine_unavailable(
    both: Both, odd: dict[str, int]
) -> None:
    engine, runtime = both
    engine.answers["GET /info"] = odd
    with pytest.raises(EngineUnavailableError, match="can't be read"):
        await runtime.facts()


async def test_memory_of_a_container_that_no_message_takes_is_an_engine_unavailable(
    both: Both,
) -> None:
    engine, runtime = both
    stats = {"memory_stats": {"usage": (1 << 64) - 1, "max_usage": 1}}
    engine.answers[f"GET /containers/{ID}/stats"] = stats
    with pytest.raises(EngineUnavailableError, match="can't be read"):
        await runtime.memory(ID)


async def test_a_download_whose_size_is_not_known_does_not_end_the_pull(both: Both) -> None:
    engine, runtime = both
    line = {"status": "Downloading", "id": "a", "progressDetail": {"current": 9, "total": -5}}

    async def pulled(_: web.Request) -> web.Response:
        engine.answers["GET /images/x.example/x:1/json"] = {}
        return web.Response(text=json.dumps(line) + "\r\n")

    engine.answers[PULL] = pulled
    await CALLS[PULL](runtime)


async def test_a_pull_whose_name_is_refused_asks_no_registry_again(both: Both) -> None:
    engine, runtime = both
    engine.answers[PULL] = (400, "invalid reference format: repository name must be lowercase")
    with pytest.raises(EngineRefusedError, match="lowercase"):
        await CALLS[PULL](runtime)


@pytest.mark.parametrize("what", ["not a directory", "too many levels of symbolic links"])
async def test_a_result_file_that_can_not_be_is_no_fault_of_the_engine(
    both: Both, what: str
) -> None:
    engine, runtime = both
    engine.answers[f"GET /containers/{ID}/archive"] = (500, f"lstat /x/etc/passwd/r: {what}")
    with pytest.raises(FileUnreadableError):
        await runtime.read_file(ID, "/etc/passwd/r", max_bytes=1)


async def test_labels_without_the_name_that_belongs_to_them_are_not_ours(both: Both) -> None:
    engine, runtime = both
    labels = ContainerLabels("host-1", "job", "operation", 1, "spec")
    ours, theirs = "a" * 64, "b" * 64
    engine.answers["GET /containers/json"] = listed = []
    for container_id, name in ((ours, labels.name), (theirs, "database")):
        config = {"Labels": labels.as_labels()}
        listed.append({"Id": container_id, "Names": [f"/{name}"], "State": "exited", **config})
        one = {**document(), "Id": container_id, "Name": f"/{name}", "Config": config}
        engine.answers[f"GET /containers/{container_id}/json"] = one
    assert [facts.id for facts in await runtime.list_own("job")] == [ours]
    assert [facts.id for facts in await runtime.list_uninspected()] == [ours]
    assert (await runtime.inspect(theirs)).labels is None


@pytest.mark.parametrize(
    "odd",
    [
        ContainerLabels("host-1", "job", "operation", -5, "spec"),
        ContainerLabels("host-1", "job", "operation", 1 << 63, "spec"),
        ContainerLabels("host-1", "job", "operation", 1, "spec", port=1 << 16),
        ContainerLabels("host-1", "j" * 129, "operation", 1, "spec"),
    ],
)
async def test_labels_that_no_worker_sets_are_not_ours(both: Both, odd: ContainerLabels) -> None:
    engine, runtime = both
    named = {"Names": [f"/{odd.name}"], "Labels": odd.as_labels(), "State": "running"}
    engine.answers["GET /containers/json"] = [{"Id": ID, **named}]
    one = {**document(), "Name": f"/{odd.name}", "Config": {"Labels": odd.as_labels()}}
    engine.answers[f"GET /containers/{ID}/json"] = one
    assert await runtime.list_own(odd.job_id) == []
    assert await runtime.list_uninspected() == []


def listed(**more: object) -> dict[str, object]:
    """Return a container of ours as `GET /containers/json` shows it."""
    labels = ContainerLabels("host-1", "job", "operation", 1, "spec", port=80)
    return {"Id": ID, "Names": [f"/{labels.name}"], "Labels": labels.as_labels(), **more}


@pytest.mark.parametrize(
    ("state", "status", "facts"),
    [
        ("created", "Created", (False, False, None, False)),
        ("running", "Up 2 minutes", (True, True, None, False)),
        ("paused", "Up 2 minutes (Paused)", (True, True, None, False)),
        ("restarting", "Restarting (1) 2 seconds ago", (True, True, None, False)),
        ("exited", "Exited (137) Less than a second ago", (False, True, 137, False)),
        ("dead", "Dead", (False, True, None, True)),
    ],
)
async def test_the_list_tells_what_state_a_container_is_in(
    both: Both, state: str, status: str, facts: object
) -> None:
    engine, runtime = both
    engine.answers["GET /containers/json"] = [listed(State=state, Status=status)]
    [one] = await runtime.list_uninspected()
    assert (one.running, one.ever_started, one.exit_code, one.dead) == facts
    assert engine.asked.count(f"GET /containers/{ID}/json") == 0


async def test_what_is_being_removed_is_not_listed(both: Both) -> None:
    engine, runtime = both
    engine.answers["GET /containers/json"] = [
        listed(State="removing", Status="Removal In Progress")
    ]
    assert await runtime.list_uninspected() == []


async def test_a_container_that_others_link_to_is_listed_by_its_own_name(both: Both) -> None:
    engine, runtime = both
    one = listed(State="running")
    one["Names"] = ["/proxy/model", *one["Names"]]  # type: ignore[misc]
    engine.answers["GET /containers/json"] = [one]
    [facts] = await runtime.list_uninspected()
    assert facts.name == "modelyard-job-1"


async def test_the_list_tells_at_which_address_a_container_is_reached(tmp_path: Path) -> None:
    ports = [
        {"PrivatePort": 80, "Type": "udp", "IP": "127.0.0.1", "PublicPort": 1},
        {"PrivatePort": 81, "Type": "tcp", "IP": "127.0.0.1", "PublicPort": 2},
        {"PrivatePort": 80, "Type": "tcp"},
        {"PrivatePort": 80, "Type": "tcp", "IP": "127.0.0.1", "PublicPort": 40_001},
    ]
    networks = {"other": {"IPAddress": "10.0.0.9"}, "n": {"IPAddress": "10.0.1.2"}}
    async with scripted_engine(tmp_path) as (engine, published):
        engine.answers["GET /containers/json"] = [
            listed(State="running", Ports=ports, NetworkSettings={"Networks": networks})
        ]
        [facts] = await published.list_uninspected()
        assert facts.address == Address("127.0.0.1", 40_001)
        reached = DockerRuntime(
            f"unix://{tmp_path / 'engine.sock'}", host_id="host-1", network="n", publish=False
        )
        async with closed_after(reached):
            [facts] = await reached.list_uninspected()
        assert facts.address == Address("10.0.1.2", 80)


@pytest.mark.parametrize("answer", [(200, "<html>"), [1], "{"])
@pytest.mark.parametrize("asked", READS)
async def test_an_answer_that_can_not_be_read_is_an_engine_unavailable(
    both: Both, asked: str, answer: object
) -> None:
    engine, runtime = both
    engine.answers[asked] = answer
    with pytest.raises(EngineUnavailableError):
        await READS[asked](runtime)


async def test_what_is_being_removed_is_gone_and_its_name_is_waited_for(both: Both) -> None:
    engine, runtime = both
    engine.answers[f"GET /containers/{NAME}/json"] = document(Status="removing")
    with pytest.raises(NoSuchContainerError):
        await runtime.inspect(NAME)

    async def removed(_: web.Request) -> web.Response:
        engine.answers[CREATE] = {"Id": ID}
        return web.Response(status=204)

    engine.answers[CREATE] = (409, "Conflict")
    engine.answers[f"DELETE /containers/{NAME}"] = removed
    assert await runtime.create(plan()) == ID


async def test_a_name_that_somebody_else_has_is_never_removed(both: Both) -> None:
    engine, runtime = both
    engine.answers[CREATE] = (409, "Conflict")
    engine.answers[f"GET /containers/{NAME}/json"] = document(Status="running")
    with pytest.raises(NameConflictError):
        await runtime.create(plan())
    assert not any(asked.startswith("DELETE") for asked in engine.asked)


@pytest.mark.parametrize(
    ("options", "isolated"),
    [({ICC_OPTION: "false"}, True), ({ICC_OPTION: "true"}, False), ({}, False)],
)
async def test_a_network_on_which_containers_meet_is_refused(
    both: Both, options: dict[str, str], *, isolated: bool
) -> None:
    engine, runtime = both
    engine.answers["GET /networks"] = [{"Name": "n", "Options": options}]
    if isolated:
        await runtime.ensure_network()
        return
    with pytest.raises(EngineUnavailableError, match="reach each other"):
        await runtime.ensure_network()


@pytest.mark.parametrize(
    ("gateway", "reached"),
    [("127.0.0.1", True), ("127.0.0.1/8", True), ("::1", True), ("192.0.2.1", False), ("", False)],
)
async def test_a_worker_in_another_network_namespace_than_the_engine_says_so(
    tmp_path: Path, gateway: str, *, reached: bool
) -> None:
    network = {"Name": "n", "Options": {ICC_OPTION: "false"}}
    async with asyncio.timeout(20), scripted_engine(tmp_path) as (engine, published):
        engine.answers["GET /networks"] = [{**network, "IPAM": {"Config": [{"Gateway": gateway}]}}]
        url = f"unix://{tmp_path / 'engine.sock'}"
        async with closed_after(DockerRuntime(url, host_id=HOST, network="n", publish=False)) as it:
            if reached:
                await it.ensure_network()
            else:
                with pytest.raises(EngineUnavailableError, match="--network host"):
                    await it.ensure_network()
        await published.ensure_network()  # through the host's loopback, which it can't check


PORT_TAKEN = (
    "driver failed programming external connectivity on endpoint modelyard-j-1 (ab): "
    "Bind for 127.0.0.1:32768 failed: port is already allocated"
)


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        ("OCI runtime create failed: no such program", StartRefusedError),
        (PORT_TAKEN, EngineUnavailableError),
        (f"failed to set up container networking: {PORT_TAKEN}", EngineUnavailableError),
    ],
)
async def test_a_refused_start_is_told_from_a_network_that_failed_for_now(
    both: Both, message: str, raised: type[Exception]
) -> None:
    engine, runtime = both
    engine.answers[f"POST /containers/{ID}/start"] = (500, message)
    with pytest.raises(raised, match=re.escape(message)):
        await runtime.start(ID)


EVENTS = "GET /events"


async def test_only_the_ends_of_own_containers_are_watched(both: Both) -> None:
    engine, runtime = both
    asked: list[str] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["filters"])
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"Action": "die"}\n')
        await response.write_eof()
        return response

    engine.answers[EVENTS] = stream
    changes: list[None] = []
    await runtime.watch(lambda: changes.append(None))
    assert len(changes) == 2  # one is for what happened before
    assert json.loads(asked[0]) == {
        "type": ["container"],
        "event": ["die", "oom", "stop", "destroy"],
        "label": ["modelyard.host=host-1"],
    }


async def test_a_stream_that_stalls_is_left_after_a_while(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, runtime = both
    monkeypatch.setattr("worker.engine.docker.events.WATCH_SLICE_S", 0.1)
    engine.answers[EVENTS] = engine.hang
    changes: list[None] = []
    await runtime.watch(lambda: changes.append(None))
    assert len(changes) == 1

    async def unassign() -> bool:
        return engine.open == 0

    await eventually(unassign)


@pytest.mark.parametrize("answer", [(500, "no"), (404, "no")])
async def test_a_stream_that_is_refused_is_an_engine_unavailable(
    both: Both, answer: object
) -> None:
    engine, runtime = both
    engine.answers[EVENTS] = answer
    with pytest.raises(EngineUnavailableError):
        await runtime.watch(lambda: None)


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("asked", [PULL, CREATE, f"POST /containers/{ID}/start"])
async def test_a_full_disk_has_a_name_of_its_own(both: Both, asked: str, status: int) -> None:
    engine, runtime = both
    engine.answers[asked] = (status, "mkdir /var/lib/x: No space left on device")
    calls: dict[str, Call] = {
        PULL: CALLS[PULL],
        CREATE: lambda it: it.create(plan()),
        f"POST /containers/{ID}/start": lambda it: it.start(ID),
    }
    with pytest.raises(DiskFullError):
        await calls[asked](runtime)
