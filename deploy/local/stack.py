"""The whole of Modelyard on one machine: servers, images, and the three services on them."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from deploy.local import engine_api, signals
from deploy.local.api_key import bootstrap_key
from deploy.local.caller_settings import CallerSettings
from deploy.local.errors import StackError
from deploy.local.images import ensure_images, export_dataset
from deploy.local.layout import Endpoints, Given, Layout
from deploy.local.locks import exclusive
from deploy.local.ports import LOOPBACK, free_port, is_free
from deploy.local.progress import Progress
from deploy.local.samples import DIGITS_DATASET
from deploy.local.servers import Servers
from deploy.local.services import DECLARED_DEVICES, Host, Services, network_of, url_on
from deploy.local.state import State, processes_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from deploy.local.daemon import Daemon

HOST_ID = "local"
PRIVATE_HOST_ID = "demo"
GATEWAY_PORT = 8080
"""The port of a stack without a name, if it is free."""
_PORT = "MODELYARD_GATEWAY_PORT"
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::", "localhost"})  # noqa: S104 - where not to send
_SHORT, _LONG = "1h", "30d"
"""How long the first API key is valid: in a MongoDB that the user provided it outlives the stack.
"""


def provide_images(docker_host: str, datasets: Path, note: Callable[[str], None]) -> None:
    """Build or load the images, and copy the held-out digits to where workers may mount them."""
    ensure_images(docker_host, note)
    datasets.mkdir(parents=True, exist_ok=True)
    export_dataset(docker_host, datasets / DIGITS_DATASET)


class LocalStack:
    """Starts a stack and stops it; as a context manager, for the lifetime of a `with` block.

    `with LocalStack.private() as stack:` gives a private stack at `stack.endpoints`. It is stopped
    at the end of the block, even if Ctrl-C, SIGTERM or SIGHUP ends the block early.
    """

    def __init__(
        self,
        layout: Layout,
        given: Given | None = None,
        *,
        host_id: str | None = None,
        progress: Progress | None = None,
        settings: CallerSettings | None = None,
    ) -> None:
        """Without `host_id` the host is named by `settings`, or else by the stack.

        If `settings` say that the gateway requires keys, `api_key` is an admin key after `start`.
        """
        self.layout = layout
        self.settings = settings or CallerSettings()
        self._progress = progress or Progress()
        self._exits = ExitStack()
        self._port = self._chosen_port()
        self._host_id = host_id or self.settings.get("MODELYARD_HOST_ID")
        self.api_key: str | None = None
        self.servers = Servers(layout, given or Given(), self._progress)
        self.services = Services(layout, self.settings)

    @classmethod
    def private(
        cls,
        given: Given | None = None,
        progress: Progress | None = None,
        settings: CallerSettings | None = None,
    ) -> Self:
        """Return a stack separate from that of `make up`; it leaves only images and logs."""
        layout = Layout.private()
        stack = cls(layout, given, progress=progress, settings=settings)
        stack.services = Services(layout, stack.settings, devices=DECLARED_DEVICES)
        return stack

    @property
    def endpoints(self) -> Endpoints:
        host = self.settings.get("MODELYARD_GATEWAY_HOST") or LOOPBACK
        return Endpoints(
            url=url_on(self._port, LOOPBACK if host in _ALL_ADDRESSES else host),
            amqp_url=self.servers.amqp_url,
            mongo_url=self.servers.mongo_url,
            docker_host=self.servers.docker_host,
        )

    @property
    def host_id(self) -> str:
        """The id of the stack's host, which no other worker on its engine has."""
        usual = self.layout.name or (PRIVATE_HOST_ID if self.layout.transient else HOST_ID)
        tag = self._engine_tag
        return self._host_id or (f"{usual}-{tag}" if tag not in {"", usual} else usual)

    @property
    def network(self) -> str:
        """The Docker network of the jobs of the stack's host."""
        return network_of(self._engine_tag)

    @property
    def state(self) -> State:
        """What a later command has to know of this stack."""
        return State(
            self.endpoints,
            self.host_id,
            processes_of(self.daemons()),
            self.servers.own_addresses,
            self.api_key,
        )

    def daemons(self) -> list[Daemon]:
        """List the processes of the stack, in the order in which they start."""
        return [*self.servers.daemons(), *self.services.daemons()]

    def start(self) -> None:
        """Start everything and return when the host is ONLINE.

        Raises `StackError`; everything is stopped then.
        """
        with ExitStack() as undo:
            undo.callback(self.stop)
            if self.layout.transient:
                self._forget_data()
            self.servers.start()
            with self._progress.step("Images") as step:
                step.result = self.provide_images(step.note)
            with self._progress.step("Gateway, dispatcher, worker") as step:
                if self.settings.with_keys:
                    valid_for = _SHORT if self.layout.transient else _LONG
                    self.api_key = bootstrap_key(self.endpoints.mongo_url, valid_for)
                self._settle_port()
                host = Host(self.host_id, self._engine_tag)
                self.services.start(self.endpoints, host, self.api_key)
                step.result = f"Gateway ready on {self.endpoints.url}, host {self.host_id} online"
            undo.pop_all()

    def provide_images(self, note: Callable[[str], None]) -> str:
        """Bring what this stack's containers need to its engine; return a line that says what."""
        provide_images(self.endpoints.docker_host, self.layout.datasets, note)
        return "Images and the digits' dataset ready"

    def stop(self) -> None:
        """Stop everything of this layout, whether this object or an earlier command started it.

        Removes the containers of the stack's host, even from an engine that the user provided.
        """
        with signals.ignored():
            self.services.stop()
            self._remove_containers()
            self.servers.stop()
            if self.layout.transient:
                self._forget_data()

    def release(self) -> None:
        """Keep the stack running after the command that started it has ended."""
        self.services.release()
        self.servers.release()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(exclusive(self.layout.data.with_suffix(".lock"), seconds=0))
            exits.enter_context(signals.raised())
            self.start()
            exits.callback(self.stop)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    @property
    def _engine_tag(self) -> str:
        """What distinguishes our containers on an engine that others may use; empty on our own."""
        ours = self.servers.docker_host == self.servers.docker.url and not self.layout.transient
        return "" if ours else self.layout.tag

    def _chosen_port(self) -> int:
        """Return the port that the caller wants, or that the stack had the last time."""
        wanted = self.settings.get(_PORT) or "0"
        if not wanted.isdecimal():
            raise StackError(f"{_PORT} is wrong: {wanted!r} is no port.")
        if int(wanted):
            return int(wanted)
        if self.layout.transient:
            return free_port()
        if self._port_file.exists():
            return int(self._port_file.read_text())
        return free_port() if self.layout.name else GATEWAY_PORT

    def _settle_port(self) -> None:
        """Take another port if somebody listens on ours by now, unless the caller wants this one.

        It is kept for the next start, so that shells and bookmarks stay right.
        """
        wanted = self.settings.get(_PORT) or "0"
        if not int(wanted) and not is_free(self._port):
            self._port = free_port()
        if not self.layout.transient:
            self._port_file.parent.mkdir(parents=True, exist_ok=True)
            self._port_file.write_text(str(self._port))

    @property
    def _port_file(self) -> Path:
        return self.layout.data / "gateway-port"

    def _remove_containers(self) -> None:
        docker_host = self.endpoints.docker_host
        if engine_api.version(docker_host):
            engine_api.remove_containers(docker_host, f"modelyard.host={self.host_id}")
            if self._engine_tag:
                engine_api.remove_network(docker_host, self.network)

    def _forget_data(self) -> None:
        """Remove the data of this run, or of an earlier run that was killed."""
        self.services.stop()
        self.servers.mongodb.stop()
        self.servers.rabbitmq.stop()
        shutil.rmtree(self.layout.data, ignore_errors=True)
