"""The whole of Modelyard on one machine: servers, images, and the three services on them."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from deploy.local import engine_api, signals
from deploy.local.api_key import bootstrap_key
from deploy.local.images import ensure_images, export_dataset
from deploy.local.layout import Endpoints, Given, Layout
from deploy.local.locks import exclusive
from deploy.local.ports import free_port
from deploy.local.progress import Progress
from deploy.local.servers import Servers
from deploy.local.services import DECLARED_DEVICES, Services, url_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from deploy.local.daemon import Daemon

HOST_ID = "local"
DIGITS_DATASET = "ds-550"
PRIVATE_HOST_ID = "demo"


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
        host_id: str = HOST_ID,
        port: int | None = None,
        progress: Progress | None = None,
        with_keys: bool = False,
    ) -> None:
        """With `with_keys` the gateway requires API keys; `api_key` is then an admin key."""
        self.layout = layout
        self.host_id = host_id
        self._progress = progress or Progress()
        self._port = port or free_port()
        self._exits = ExitStack()
        self._with_keys = with_keys
        self.api_key: str | None = None
        self.servers = Servers(layout, given or Given(), self._progress)
        self.services = Services(layout, host_id=host_id)

    @classmethod
    def private(
        cls,
        given: Given | None = None,
        progress: Progress | None = None,
        *,
        with_keys: bool = False,
    ) -> Self:
        """Return a stack separate from that of `make up`; it leaves only images and logs."""
        layout = Layout.private()
        stack = cls(layout, given, host_id=PRIVATE_HOST_ID, progress=progress, with_keys=with_keys)
        stack.services = Services(layout, host_id=PRIVATE_HOST_ID, devices=DECLARED_DEVICES)
        return stack

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(
            url=url_on(self._port),
            amqp_url=self.servers.amqp_url,
            mongo_url=self.servers.mongo_url,
            docker_host=self.servers.docker_host,
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
                if self._with_keys:
                    self.api_key = bootstrap_key(self.endpoints.mongo_url)
                self.services.start(self.endpoints, self.api_key)
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

    def _remove_containers(self) -> None:
        docker_host = self.endpoints.docker_host
        if engine_api.version(docker_host):
            engine_api.remove_containers(docker_host, f"modelyard.host={self.host_id}")

    def _forget_data(self) -> None:
        """Remove the data of this run, or of an earlier run that was killed."""
        self.services.stop()
        self.servers.mongodb.stop()
        self.servers.rabbitmq.stop()
        shutil.rmtree(self.layout.data, ignore_errors=True)
