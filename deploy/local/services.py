"""The three processes of Modelyard itself, on servers that are ready."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

from deploy.local.caller_settings import CallerSettings
from deploy.local.daemon import Daemon
from deploy.local.errors import StartFailed
from deploy.local.ports import LOOPBACK, free_port, is_free
from deploy.local.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploy.local.layout import Endpoints, Layout

_READY_S = 60.0
_STOP_S = 15.0
_TIMEOUT_S = 2.0
_WORKER_SLOTS = 4
_METRICS_PORTS = {"GATEWAY": 9181, "DISPATCHER": 9182, "WORKER": 9183}
"""The usual ones."""
DECLARED_DEVICES = (
    {"uuid": "DEMO-0", "index": 0, "model": "declared", "memory": "24g"},
    {"uuid": "DEMO-1", "index": 1, "model": "declared", "memory": "24g"},
)
"""Devices that a private stack's worker offers, so that placement on GPUs can be tried without."""


class Service:
    """One process of Modelyard, `python -m MODULE`; `name` distinguishes several of a kind."""

    def __init__(
        self, module: str, *, root: Path, folder: Path, logs: Path | None = None, name: str = ""
    ) -> None:
        name = name or module
        self.daemon = Daemon(name, folder, log=logs / f"{name}.log" if logs else None)
        self.root = root
        """The checkout whose code it runs; another one takes effect at its next start."""
        self._argv = [sys.executable, "-m", module]
        self._environment: dict[str, str] = {}

    @property
    def running(self) -> bool:
        return self.daemon.process is not None

    def launch(self, settings: Mapping[str, str]) -> None:
        """Start the process, without waiting for it, with `settings` in its environment.

        It also gets this command's own environment, except `MODELYARD_*`: of those, `settings`
        has the ones that are meant for the services.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
        self._environment = {**inherited, **settings}
        self.daemon.spawn(self._argv, self._environment, cwd=self.root)

    def restart(self) -> None:
        """Stop the process if it runs, and start it with the same settings again."""
        self.stop()
        self.daemon.spawn(self._argv, self._environment, cwd=self.root)

    def stop(self) -> None:
        self.daemon.stop(_STOP_S)

    def kill(self) -> None:
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()


@dataclass(frozen=True)
class Host:
    """The host of a stack's worker."""

    host_id: str
    tag: str = ""
    """Part of the names on an engine that others use too, so that they differ from others'."""


class Services:
    """Gateway, dispatcher and one worker of a stack."""

    def __init__(
        self,
        layout: Layout,
        settings: CallerSettings | None = None,
        *,
        slots: int = _WORKER_SLOTS,
        devices: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """With `devices` the worker offers these instead of those that the machine has.

        `settings` win over all but the addresses of the stack.
        """
        self._layout = layout
        self._settings = settings or CallerSettings()
        self._devices = devices
        self._slots = slots
        self.gateway, self.dispatcher, self.worker = (
            Service(module, root=layout.root, folder=layout.data / "services", logs=layout.logs)
            for module in ("gateway", "dispatcher", "worker")
        )

    def daemons(self) -> list[Daemon]:
        return [self.gateway.daemon, self.dispatcher.daemon, self.worker.daemon]

    def start(self, endpoints: Endpoints, host: Host, api_key: str | None = None) -> None:
        """Start all three and return when the gateway shows the host as ONLINE.

        If there is a key, which must be able to read hosts, the gateway requires keys.

        Raises `StartFailed` with the end of the log of the process that exited. The caller has to
        stop the services, even if this raises.
        """
        address = httpx2.URL(endpoints.url)
        broker = {"MODELYARD_AMQP_URL": endpoints.amqp_url}
        stores = {**broker, "MODELYARD_MONGO_URL": endpoints.mongo_url}
        metrics = self._metrics_addresses()
        over = self._settings.over
        gateway = over({"MODELYARD_GATEWAY_HOST": address.host, **metrics})
        self.gateway.launch(
            {
                **gateway,
                **stores,
                "MODELYARD_GATEWAY_PORT": str(address.port),
                "MODELYARD_AUTH": "keys" if api_key else "none",
            }
        )
        self.dispatcher.launch({**over(metrics), **stores})
        worker = over({**self._worker_defaults(host), **metrics})
        if self._devices is not None:
            worker["MODELYARD_WORKER_DEVICES"] = json.dumps(self._devices)
        addresses = {"MODELYARD_HOST_ID": host.host_id, "DOCKER_HOST": endpoints.docker_host}
        self.worker.launch({**worker, **broker, **addresses})
        self._await_ready(endpoints.url, host.host_id, api_key)

    def stop(self) -> None:
        """Stop worker, dispatcher and gateway of this run, or of an earlier one."""
        self.worker.stop()
        self.dispatcher.stop()
        self.gateway.stop()

    def release(self) -> None:
        """Keep the services running after the command that started them has ended."""
        for daemon in self.daemons():
            daemon.release()

    def _worker_defaults(self, host: Host) -> dict[str, str]:
        settings = {
            "MODELYARD_WORKER_SLOTS": str(self._slots),
            # For trying it out: only the slots limit how many models share this machine.
            "MODELYARD_WORKER_CPUS": "1000",
            "MODELYARD_WORKER_MEMORY": "1t",
            "MODELYARD_WORKER_DATASET_ROOTS": json.dumps([str(self._layout.datasets)]),
            # Only users of this machine can reach the gateway.
            "MODELYARD_WORKER_ALLOWED_IMAGES": '["*"]',
        }
        if host.tag:
            settings["MODELYARD_WORKER_CONTAINER_PREFIX"] = f"modelyard.{host.tag}"
        settings["MODELYARD_WORKER_NETWORK"] = network_of(host.tag)
        return settings

    def _metrics_addresses(self) -> dict[str, str]:
        """Return where the services are scraped: nowhere if they stop with this command.

        Beside another stack, which has the usual addresses, it is at others.
        """
        if self._layout.transient:
            return dict.fromkeys(map(_metrics_variable, _METRICS_PORTS), "off")
        return {
            _metrics_variable(service): f"{LOOPBACK}:{free_port()}"
            for service, port in _METRICS_PORTS.items()
            if not is_free(port)
        }

    def _await_ready(self, url: str, host_id: str, api_key: str | None) -> None:
        def ready() -> bool:
            for daemon in self.daemons():
                daemon.check()
            if not self._is_ours(url):
                return False
            return gateway_ready(url) and host_online(url, host_id, api_key)

        try:
            wait_until(ready, _READY_S, "services")
        except TimeoutError:
            ends = "\n".join(f"The end of {d.log}:\n{d.log_end()}" for d in self.daemons())
            message = f"Host {host_id} was not online within {_READY_S:g} s.\n{ends}"
            raise StartFailed(message) from None

    def _is_ours(self, url: str) -> bool:
        """Tell whether our gateway answers at this URL, and not that of another stack.

        If another one listens there, ours exits, but only some time after its start.
        """
        process, port = self.gateway.daemon.process, httpx2.URL(url).port
        return process is not None and port is not None and process.listens_on(port)


def gateway_ready(url: str) -> bool:
    """Tell whether the gateway at `url` reports that it is ready."""
    try:
        return httpx2.get(f"{url}/readyz", timeout=_TIMEOUT_S, trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def host_online(url: str, host_id: str, api_key: str | None = None) -> bool:
    """Tell whether the gateway at `url` lists the host with liveness ONLINE."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx2.get(f"{url}/v1/hosts", headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        hosts = answer.raise_for_status().json()["hosts"]
    except httpx2.HTTPError:
        return False
    return any(host["host_id"] == host_id and host["liveness"] == "ONLINE" for host in hosts)


def url_on(port: int, host: str = LOOPBACK) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def network_of(tag: str) -> str:
    """Return the Docker network of a stack's jobs; `tag` is empty on an engine of its own."""
    return f"modelyard-{tag}" if tag else "modelyard"


def _metrics_variable(service: str) -> str:
    return f"MODELYARD_{service}_METRICS_ADDRESS"
