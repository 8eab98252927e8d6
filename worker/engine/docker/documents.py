"""Docker's answers, with the fields that we read. Source: Docker Engine API 1.41. Pure."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_pascal

from modelyard.contract.capacity.offers import MAX_CPUS, Bytes
from modelyard.contract.messages import EngineFacts
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ImageFacts
from worker.engine.protocol import Address, ContainerFacts, MountFacts, VolumeFacts

_NEVER = "0001-01-01"
_RUNNING = frozenset({"running", "paused", "restarting"})
"""The states in the engine's list that an inspection shows as running."""
_EXITED = re.compile(r"Exited \((\d+)\)")
"""How the list's text for people begins, the only place where it has the exit code."""


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal, extra="ignore", frozen=True)


class _State(_Document):
    status: str = ""
    running: bool
    exit_code: int = 0
    oom_killed: bool = Field(default=False, alias="OOMKilled")
    started_at: str = _NEVER
    pid: int = 0


class _Config(_Document):
    labels: dict[str, str] | None = None


class _DeviceRequest(_Document):
    device_ids: tuple[str, ...] | None = Field(default=None, alias="DeviceIDs")


class _HostConfig(_Document):
    readonly_rootfs: bool = False
    tmpfs: dict[str, str] | None = None
    device_requests: tuple[_DeviceRequest, ...] | None = None


class _Mount(_Document):
    type: str
    name: str = ""
    source: str = ""
    destination: str
    rw: bool = Field(alias="RW")


class _Binding(_Document):
    host_port: str = ""


class _Endpoint(_Document):
    ip_address: str = Field(default="", alias="IPAddress")


class _NetworkSettings(_Document):
    ports: dict[str, list[_Binding] | None] | None = None
    networks: dict[str, _Endpoint] | None = None


class ContainerDocument(_Document):
    """`GET /containers/{id}/json`."""

    id: str
    name: str
    state: _State
    config: _Config
    host_config: _HostConfig = _HostConfig()
    mounts: tuple[_Mount, ...] = ()
    size_rw: int = 0
    """Bytes written to the root file system; set only if the request asked for sizes."""
    network_settings: _NetworkSettings = _NetworkSettings()

    @property
    def being_removed(self) -> bool:
        """True while it is being removed."""
        return self.state.status == "removing"

    @property
    def dead(self) -> bool:
        """True once its removal has failed, or the engine died during the removal.

        The engine does not go on with the removal by itself, because only its caller knows what
        else was to be removed; see `daemon.restore` of Moby.
        """
        return self.state.status == "dead"

    def facts(self, *, publish: bool, network: str) -> ContainerFacts:
        """Return the container's facts as the protocol defines them."""
        name = self.name.removeprefix("/")
        labels = ContainerLabels.parse(self.config.labels or {}, name=name)
        mounts = self._mounts()
        state = self.state
        started = not state.started_at.startswith(_NEVER)
        return ContainerFacts(
            id=self.id,
            name=name,
            running=state.running,
            ever_started=started,
            exit_code=state.exit_code if started and not state.running else None,
            oom_killed=state.oom_killed,
            dead=self.dead,
            devices=tuple(
                uuid
                for asked in self.host_config.device_requests or ()
                for uuid in asked.device_ids or ()
            ),
            labels=labels,
            mounts=mounts,
            fills_disk=not self.host_config.readonly_rootfs or any(it.on_disk for it in mounts),
            address=self._address(labels, publish=publish, network=network),
        )

    def _address(
        self, labels: ContainerLabels | None, *, publish: bool, network: str
    ) -> Address | None:
        if labels is None or not self.state.running:
            return None
        settings = self.network_settings
        bound = (settings.ports or {}).get(f"{labels.port}/tcp") or []
        ports = [int(binding.host_port) for binding in bound if binding.host_port]
        return _address(labels, ports, settings, network=None if publish else network)

    def _mounts(self) -> tuple[MountFacts, ...]:
        found = [
            MountFacts(
                kind=mount.type,
                source=mount.name if mount.type == "volume" else mount.source,
                target=mount.destination,
                read_only=not mount.rw,
            )
            for mount in self.mounts
        ]
        # Docker does not list a tmpfs among the mounts.
        found += [MountFacts("tmpfs", "", t, read_only=False) for t in self.host_config.tmpfs or ()]
        return tuple(found)


class _ListedPort(_Document):
    private_port: int
    public_port: int | None = None
    type: str = "tcp"


class ListedContainerDocument(_Document):
    """One container of `GET /containers/json`."""

    id: str
    names: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None
    state: str
    status: str = ""
    ports: tuple[_ListedPort, ...] | None = None
    network_settings: _NetworkSettings | None = None

    @property
    def being_removed(self) -> bool:
        """True while it is being removed."""
        return self.state == "removing"

    def facts(self, *, publish: bool, network: str) -> ContainerFacts:
        """Return what the list tells of the container; see `list_uninspected`."""
        # A container that is linked from another one has a second name, below the other's.
        name = next((one[1:] for one in self.names or () if one.rfind("/") == 0), "")
        labels = ContainerLabels.parse(self.labels or {}, name=name)
        running = self.state in _RUNNING
        ended = _EXITED.match(self.status)
        address = None
        if labels is not None and running:
            ports = [
                one.public_port
                for one in self.ports or ()
                if one.public_port and (one.private_port, one.type) == (labels.port, "tcp")
            ]
            settings = self.network_settings or _NetworkSettings()
            address = _address(labels, ports, settings, network=None if publish else network)
        return ContainerFacts(
            id=self.id,
            name=name,
            running=running,
            ever_started=self.state != "created",
            exit_code=int(ended[1]) if ended and not running else None,
            oom_killed=False,
            dead=self.state == "dead",
            labels=labels,
            mounts=(),
            address=address,
            inspected=False,
        )


def _address(
    labels: ContainerLabels,
    published: list[int],
    settings: _NetworkSettings,
    *,
    network: str | None,
) -> Address | None:
    """Return the address of a running container on `network`; None: of its published port."""
    if labels.port is None:
        return None
    if network is None:
        return Address("127.0.0.1", published[0]) if published else None
    endpoint = (settings.networks or {}).get(network)
    if endpoint is None or not endpoint.ip_address:
        return None
    return Address(endpoint.ip_address, labels.port)


class _MemoryStats(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    usage: Bytes = 0
    max_usage: Bytes | None = None
    """Not set under control groups version 2."""
    stats: dict[str, int] = Field(default_factory=dict)


class StatsDocument(BaseModel):
    """`GET /containers/{id}/stats`. Without its numbers the container does not run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    memory_stats: _MemoryStats = _MemoryStats()


class _AddressBlock(_Document):
    gateway: str = ""


class _AddressPlan(_Document):
    config: tuple[_AddressBlock, ...] | None = None


class NetworkDocument(_Document):
    """`GET /networks`, one entry."""

    name: str
    options: dict[str, str] | None = None
    address_plan: _AddressPlan = Field(default=_AddressPlan(), alias="IPAM")

    @property
    def gateways(self) -> tuple[str, ...]:
        """The addresses that the engine's own network namespace has on this network."""
        blocks = self.address_plan.config or ()
        # Docker writes some of them with the length of their prefix.
        return tuple(one.gateway.partition("/")[0] for one in blocks if one.gateway)

    @property
    def isolates(self) -> bool:
        """True if containers on this network can't reach each other."""
        return (self.options or {}).get(ICC_OPTION) == "false"


class _ImageConfig(_Document):
    volumes: dict[str, Any] | None = None
    env: list[str] | None = None


class ImageDocument(_Document):
    """`GET /images/{name}/json`."""

    config: _ImageConfig | None = None

    def facts(self) -> ImageFacts:
        """Return the image's facts as the plan needs them."""
        config = self.config or _ImageConfig()
        return ImageFacts(
            volumes=tuple(config.volumes or ()),
            env=frozenset(line.partition("=")[0] for line in config.env or ()),
        )


class ListedImageDocument(_Document):
    """One image of `GET /images/json`."""

    repo_tags: tuple[str, ...] | None = None
    repo_digests: tuple[str, ...] | None = None
    created: int = 0
    """Seconds since 1970."""

    @property
    def names(self) -> list[str]:
        """Its names by tag and by digest; an image without any has `<none>` in their place."""
        names = [*(self.repo_tags or ()), *(self.repo_digests or ())]
        return [name for name in names if "<none>" not in name]


class VolumeDocument(_Document):
    """`GET /volumes/{name}`."""

    name: str = ""
    driver: str = ""
    options: dict[str, str] | None = None
    mountpoint: str = ""

    def facts(self) -> VolumeFacts:
        """Return the volume's facts as the protocol defines them."""
        return VolumeFacts(self.driver, dict(self.options or {}), self.mountpoint)


class VolumesDocument(_Document):
    """`GET /volumes`."""

    volumes: tuple[VolumeDocument, ...] | None = None


class _VolumeUsage(_Document):
    size: int = -1


class _UsedVolume(_Document):
    name: str
    usage_data: _VolumeUsage | None = None


class DiskUsageDocument(_Document):
    """`GET /system/df`."""

    volumes: tuple[_UsedVolume, ...] | None = None

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each volume that Docker could measure, by name."""
        measured = [(it.name, it.usage_data.size) for it in self.volumes or () if it.usage_data]
        return {name: size for name, size in measured if size >= 0}


ICC_OPTION = "com.docker.network.bridge.enable_icc"


class VersionDocument(_Document):
    """`GET /version`."""

    version: str
    api_version: str


class InfoDocument(_Document):
    """`GET /info`."""

    operating_system: str = ""
    ncpu: int = Field(default=0, alias="NCPU", ge=0, le=MAX_CPUS)
    mem_total: Bytes = 0
    driver: str = ""
    driver_status: tuple[tuple[str, ...], ...] | None = None

    @property
    def may_limit_root(self) -> bool:
        """True if the storage driver may be able to limit what a container writes to its root.

        Overlay on XFS can if the file system is mounted with `pquota`; the only way to know is to
        try. Drivers whose limit includes the image do not count (btrfs: `max_referenced`;
        devicemapper).
        """
        if self.driver == "zfs":
            return True
        on_xfs = ("Backing Filesystem", "xfs") in (self.driver_status or ())
        return self.driver == "overlay2" and on_xfs


class _LayerBytes(BaseModel):
    model_config = ConfigDict(extra="ignore")

    current: int | None = None
    total: int | None = None


class PullLine(BaseModel):
    """One line of `POST /images/create`."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    status: str = ""
    id: str = ""
    progress_detail: _LayerBytes | None = Field(default=None, alias="progressDetail")
    error: str = ""
    """Why the pull failed; a line with an error is the last one."""


class PullProgress:
    """The sum of downloaded bytes over all layers that were announced so far."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def take(self, line: PullLine) -> bool:
        """Add one line; return whether it changed the sums."""
        detail = line.progress_detail or _LayerBytes()
        current, total = detail.current or 0, detail.total or 0
        # The engine tells a negative total if it resumes a download whose size it does not know.
        if line.status == "Downloading" and total > 0:
            self._layers[line.id] = (min(max(current, 0), total), total)
            return True
        if line.status in {"Download complete", "Pull complete"} and line.id in self._layers:
            total = self._layers[line.id][1]
            self._layers[line.id] = (total, total)
            return True
        return False

    @property
    def current(self) -> int:
        return sum(current for current, _ in self._layers.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self._layers.values())


def engine_facts(version: VersionDocument, info: InfoDocument) -> EngineFacts:
    """Return the engine's description of itself as the messages carry it."""
    return EngineFacts(
        version=version.version,
        api_version=version.api_version,
        operating_system=info.operating_system,
        cpus=info.ncpu,
        memory=info.mem_total,
    )
