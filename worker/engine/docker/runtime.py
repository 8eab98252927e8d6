"""The Docker Engine as a `ContainerRuntime`, through aiodocker.

There are two clients, because waits, pulls and logs use their connections for long and must not
delay the short calls. Every call has a deadline (see `worker.engine.docker.calls`), except a pull,
whose time the caller limits. Every id is checked before it is put into a URL, and every image is
named by its full reference. The API version is negotiated: 1.41 (Docker 20.10) and up.
"""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import structlog
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from modelyard.contract.catalog.images import full_reference
from modelyard.contract.messages import EngineFacts
from modelyard.process.tasks import in_daemon_thread
from worker.engine.docker.calls import (
    CALL_S,
    CONFLICT,
    NOT_FOUND,
    SERVER_FAULT,
    UNREACHABLE,
    client_of,
    deadline,
    disk_is_full,
    network_failed,
    one_container,
    refuses_storage_opt,
)
from worker.engine.docker.config import engine_config
from worker.engine.docker.documents import (
    ICC_OPTION,
    ContainerDocument,
    DiskUsageDocument,
    ImageDocument,
    InfoDocument,
    ListedContainerDocument,
    ListedImageDocument,
    NetworkDocument,
    StatsDocument,
    VersionDocument,
    VolumeDocument,
    VolumesDocument,
    engine_facts,
)
from worker.engine.docker.events import watch
from worker.engine.docker.memory import peak_of, reading_of
from worker.engine.docker.output import DockerOutput
from worker.engine.docker.own_addresses import is_own
from worker.engine.docker.pull import pull
from worker.engine.labels import HOST, JOB
from worker.engine.plan import ContainerPlan, ImageFacts
from worker.engine.protocol import (
    ContainerExit,
    ContainerFacts,
    CreateRefusedError,
    EngineUnavailableError,
    ImageNotFoundError,
    ImagePullFailedError,
    MemoryReading,
    NameConflictError,
    NoSuchContainerError,
    OnProgress,
    StartRefusedError,
    VolumeFacts,
    checked_ref,
)

log = structlog.get_logger(__name__)

PING_S = 5.0
MEASURE_S = 60.0
MEMORY_S = 5.0
"""Seconds for measuring memory: nothing may wait long for it."""
CLOSE_S = 2.0
CREATE_S = 60.0
REMOVE_S = 60.0
PULL_S = 7 * 86_400.0
"""Practically no limit, because a pull may be slow; the operation's own timeout ends it."""
_REMOVAL_PROBE_S = 0.1

_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


class DockerRuntime:
    """The engine of one host. It lists only the containers with that host's labels."""

    def __init__(self, url: str, *, host_id: str, network: str, publish: bool) -> None:
        """`url` begins with `unix://`, `tcp://`, `http://` or `https://`."""
        self._host_id = host_id
        self._network = network
        self._publish = publish
        self._docker = client_of(url)
        self._streams = client_of(url)
        self._output = DockerOutput(self._streams)
        self._may_limit_root = False
        """False until `facts` has asked the engine; see `InfoDocument.may_limit_root`."""
        self._refused_root_limit = False

    async def close(self) -> None:
        async with asyncio.timeout(CLOSE_S):
            await self._docker.close()
            await self._streams.close()

    async def ping(self) -> None:
        async with deadline("ping", PING_S, internal=True):
            await self._docker.version()

    async def facts(self) -> EngineFacts:
        async with deadline("describe itself", CALL_S, internal=True):
            version = VersionDocument.model_validate(await self._docker.version())
            info = InfoDocument.model_validate(await self._docker.system.info())
            facts = engine_facts(version, info)
        self._may_limit_root = info.may_limit_root and not self._refused_root_limit
        return facts

    async def ensure_network(self) -> None:
        async with deadline("create the job network", CALL_S, internal=True):
            known = await self._known_network()
            if known is None:
                try:
                    await self._docker.networks.create(_network_config(self._network))
                except DockerError as error:
                    if error.status != CONFLICT:
                        raise
                known = await self._known_network()
            if known is not None and not known.isolates:
                raise EngineUnavailableError(
                    f"The network {self._network} exists and lets containers reach each other: "
                    f"remove it, or create it with the option {ICC_OPTION}=false."
                )
            if known is not None and not self._publish and not any(map(is_own, known.gateways)):
                raise EngineUnavailableError(
                    f"This worker can't reach containers on the network {self._network} by their "
                    "addresses, because it does not share the engine's network namespace. Run its "
                    "container with --network host, or set MODELYARD_WORKER_REACH=published."
                )

    async def _known_network(self) -> NetworkDocument | None:
        found = await self._docker.networks.list(filters={"name": self._network})
        networks = [NetworkDocument.model_validate(raw) for raw in found]
        return next((known for known in networks if known.name == self._network), None)

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        with suppress(ImageNotFoundError):
            await self.image(image)
            return
        async with deadline(f"pull {image}", PULL_S):
            await pull(self._streams, full_reference(image), on_progress)
        try:
            # The progress stream may end without an error when its connection breaks.
            await self.image(image)
        except ImageNotFoundError as error:
            raise ImagePullFailedError(
                f"{image}: the pull ended without an error, but the engine does not have the image."
            ) from error

    async def image_names(self) -> list[str]:
        async with deadline("list images", CALL_S, internal=True):
            found = await self._docker.images.list()
            listed = [ListedImageDocument.model_validate(one) for one in found]
        listed.sort(key=lambda one: -one.created)
        return [full_reference(name) for one in listed for name in one.names]

    async def image(self, image: str) -> ImageFacts:
        async with deadline("inspect an image", CALL_S):
            try:
                found = await self._docker.images.inspect(full_reference(image))
            except DockerError as error:
                if error.status == NOT_FOUND:
                    raise ImageNotFoundError(f"{image}: {error.message}") from error
                raise
            return ImageDocument.model_validate(found).facts()

    async def volume(self, name: str) -> VolumeFacts | None:
        if _VOLUME.fullmatch(name) is None:
            return None
        async with deadline("look for a volume", CALL_S):
            try:
                found = await self._docker._query_json(f"volumes/{name}")  # noqa: SLF001 - no wrapper object
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return None
                raise
            return VolumeDocument.model_validate(found).facts()

    async def all_volumes(self) -> dict[str, VolumeFacts]:
        async with deadline("list volumes", CALL_S, internal=True):
            answer = await self._docker._query_json("volumes")  # noqa: SLF001 - no wrapper object
            found = VolumesDocument.model_validate(answer).volumes or ()
        return {one.name: one.facts() for one in found}

    async def written(self, container_id: str) -> int:
        async with one_container(self._streams, container_id, "measure", MEASURE_S) as container:
            return ContainerDocument.model_validate(await container.show(size="1")).size_rw

    async def volume_sizes(self) -> dict[str, int]:
        # Docker 20.10 ignores `type` and measures everything; later versions only the volumes.
        async with deadline("measure volumes", MEASURE_S, internal=True):
            answer = await self._streams._query_json("system/df", params={"type": "volume"})  # noqa: SLF001 - aiodocker has no parameter for it
            return DiskUsageDocument.model_validate(answer).sizes()

    async def memory(self, container_id: str) -> MemoryReading:
        path = f"containers/{checked_ref(container_id)}/stats"
        async with self._container(container_id, "measure", MEMORY_S):
            # One look: two would take the engine a second, for the share of the processors.
            answer = await self._docker._query_json(  # noqa: SLF001 - aiodocker has no parameter for it
                path, params={"stream": "false", "one-shot": "true"}
            )
            stats = StatsDocument.model_validate(answer)
        peak = None
        if stats.memory_stats.usage and stats.memory_stats.max_usage is None:
            async with self._container(container_id, "inspect", MEMORY_S) as container:
                document = ContainerDocument.model_validate(await container.show())
            peak = await in_daemon_thread(
                lambda: peak_of(document.id, document.state.pid), name="memory-peak"
            )
        return reading_of(stats, peak)

    async def create(self, plan: ContainerPlan) -> str:
        checked_ref(plan.name)
        created = await self._create(plan)
        if created is not None:
            return created
        try:
            return await self._adopt(plan)
        except NoSuchContainerError:
            # The container with this name is being removed, or is dead.
            await self.remove(plan.name)
        created = await self._create(plan)
        if created is None:
            raise NameConflictError(
                f"The name {plan.name} is still taken after its container was removed."
            )
        return created

    async def _create(self, plan: ContainerPlan) -> str | None:
        """Return the new container's id; None if its name is taken."""
        config = engine_config(plan, limit_root=self._may_limit_root)
        config["Image"] = full_reference(plan.image)
        async with deadline("create a container", CREATE_S):
            try:
                created = await self._docker.containers.create(config, name=plan.name)
            except DockerError as error:
                if error.status == CONFLICT:
                    return None
                if disk_is_full(error.message):
                    raise
                if "StorageOpt" in config["HostConfig"] and refuses_storage_opt(error.message):
                    self._refused_root_limit, self._may_limit_root = True, False
                    log.info("engine.no_root_limit", reason=error.message)
                    return await self._create(plan)
                if error.status == NOT_FOUND and "image" in (error.message or "").lower():
                    raise ImageNotFoundError(f"{plan.image}: {error.message}") from error
                if error.status < SERVER_FAULT:
                    message = f"Docker refused the container: {error.message}"
                    raise CreateRefusedError(message) from error
                raise
            return created.id

    async def _adopt(self, plan: ContainerPlan) -> str:
        """Return the id of the container with the planned name if its labels match the plan."""
        facts = await self.inspect(plan.name)
        if facts.labels is None or not facts.labels.same_container(plan.labels):
            raise NameConflictError(
                f"The name {plan.name} is taken by another container.", container_id=facts.id
            )
        return facts.id

    async def link_at(self, container_id: str, path: str) -> str | None:
        return await self._output.link_at(container_id, path)

    async def start(self, container_id: str) -> None:
        async with self._container(container_id, "start", CALL_S) as container:
            try:
                await container.start()  # aiodocker takes 304, it runs already, for success
            except DockerError as error:
                if error.status in {NOT_FOUND, UNREACHABLE} or disk_is_full(error.message):
                    raise
                if network_failed(error.message):
                    raise EngineUnavailableError(f"Docker: {error.message}") from error
                # The status does not help: a bad command gives 400, a missing mount 500.
                raise StartRefusedError(f"Docker: {error.message}") from error

    async def stop(self, container_id: str, grace_s: float) -> None:
        limit = grace_s + CALL_S
        async with one_container(self._streams, container_id, "stop", limit) as container:
            await container.stop(t=max(0, round(grace_s)))

    async def remove(self, container_id: str) -> None:
        async with deadline("remove a container", REMOVE_S):
            container = self._docker.containers.container(checked_ref(container_id))
            while True:
                try:
                    await container.delete(force=True, v=True)
                except DockerError as error:
                    if error.status == NOT_FOUND:
                        return
                    if error.status != CONFLICT:
                        raise
                    # Another removal of it is running; try again until it is gone.
                    await asyncio.sleep(_REMOVAL_PROBE_S)
                else:
                    return

    async def inspect(self, ref: str) -> ContainerFacts:
        facts = await self._inspect(ref)
        if facts.dead:
            raise NoSuchContainerError
        return facts

    async def _inspect(self, ref: str, *, internal: bool = False) -> ContainerFacts:
        """Return the facts of a container, also of a dead one."""
        async with one_container(
            self._docker, ref, "inspect", CALL_S, internal=internal
        ) as container:
            document = ContainerDocument.model_validate(await container.show())
            if document.being_removed:
                raise NoSuchContainerError
            return document.facts(publish=self._publish, network=self._network)

    async def list_own(self, job_id: str) -> list[ContainerFacts]:
        found = []
        for listed in await self._list(f"{JOB}={job_id}"):
            try:
                facts = await self._inspect(listed.id, internal=True)
            except NoSuchContainerError:
                continue  # removed after it was listed
            # The labels may come from an image; they are None unless the name matches them.
            if facts.labels is not None:
                found.append(facts)
        return found

    async def list_uninspected(self) -> list[ContainerFacts]:
        listed = [
            one.facts(publish=self._publish, network=self._network)
            for one in await self._list()
            if not one.being_removed
        ]
        return [facts for facts in listed if facts.labels is not None]

    async def _list(self, *labels: str) -> list[ListedContainerDocument]:
        """List the containers with this host's label and the given ones."""
        filters = json.dumps({"label": [f"{HOST}={self._host_id}", *labels]})
        async with deadline("list containers", CALL_S, internal=True):
            answer = await self._docker._query_json(  # noqa: SLF001 - aiodocker's own list drops the fields
                "containers/json", params={"all": True, "filters": filters}
            )
            return [ListedContainerDocument.model_validate(one) for one in answer]

    async def wait_exit(self, container_id: str) -> ContainerExit:
        while True:
            await self._output.wait_a_while(container_id)
            facts = await self.inspect(container_id)
            if not facts.running:
                return ContainerExit(facts.exit_code or 0, facts.oom_killed)

    async def watch(self, on_change: Callable[[], None]) -> None:
        await watch(self._streams, self._host_id, on_change)

    async def log_tail(self, container_id: str, *, lines: int) -> str:
        return await self._output.log_tail(container_id, lines=lines)

    async def stdout_tail(self, container_id: str, *, max_bytes: int) -> bytes:
        return await self._output.stdout_tail(container_id, max_bytes=max_bytes)

    async def log_is_full(self, container_id: str) -> bool:
        return await self._output.log_is_full(container_id)

    async def read_file(self, container_id: str, path: str, *, max_bytes: int) -> bytes:
        return await self._output.read_file(container_id, path, max_bytes=max_bytes)

    def _container(
        self, ref: str, what: str, seconds: float
    ) -> AbstractAsyncContextManager[DockerContainer]:
        return one_container(self._docker, ref, what, seconds)


def _network_config(name: str) -> dict[str, object]:
    return {
        "Name": name,
        "Driver": "bridge",
        "CheckDuplicate": True,
        "Options": {ICC_OPTION: "false"},
        "Labels": {"modelyard.network": name},
    }
