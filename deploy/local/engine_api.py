"""The few calls of the Docker API that the local stack needs."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from deploy.local.errors import CannotProvide

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT = "unix:///var/run/docker.sock"
_TIMEOUT_S = 5.0
_REMOVAL_S = 60.0
_IN_USE = 403
_GONE = (404, 409)  # no such container; or it is being removed, or not running, already


def version(docker_host: str) -> str | None:
    """Return the version of the engine; None if it does not answer."""
    try:
        with _client(docker_host) as client:
            answer = client.get("/version").raise_for_status()
    except httpx2.HTTPError:
        return None
    return str(answer.json()["Version"])


def kill_containers(docker_host: str) -> None:
    """SIGKILL every running container, because stopping them in an orderly way takes long."""
    with _client(docker_host) as client:
        for container in _containers(client, {"status": ["running", "paused"]}):
            answer = client.post(f"/containers/{container}/kill", timeout=_REMOVAL_S)
            _accept(answer)


def remove_containers(docker_host: str, label: str) -> int:
    """Remove the containers with a `name=value` label, running or not; return their number."""
    with _client(docker_host) as client:
        containers = _containers(client, {"label": [label]})
        for container in containers:
            options = {"force": "true", "v": "true"}
            answer = client.delete(f"/containers/{container}", params=options, timeout=_REMOVAL_S)
            _accept(answer)
    return len(containers)


def remove_network(docker_host: str, name: str) -> None:
    """Remove a network, unless there is none of this name or another container uses it."""
    with _client(docker_host) as client:
        answer = client.delete(f"/networks/{name}")
        if answer.status_code != _IN_USE:
            _accept(answer)


def container_processes(docker_host: str, label: str) -> list[int]:
    """Return the first process of each running container with a `name=value` label."""
    return [int(one["State"]["Pid"]) for one in _running(docker_host, label)]


def published_ports(docker_host: str, label: str, port: int) -> list[int]:
    """Return where each running container with a `name=value` label publishes a TCP port."""
    return [
        int(one["NetworkSettings"]["Ports"][f"{port}/tcp"][0]["HostPort"])
        for one in _running(docker_host, label)
    ]


def _running(docker_host: str, label: str) -> list[dict[str, Any]]:
    """Inspect the running containers with a label."""
    with _client(docker_host) as client:
        containers = _containers(client, {"label": [label], "status": ["running"]})
        found = [client.get(f"/containers/{one}/json").raise_for_status() for one in containers]
    return [answer.json() for answer in found]


def _containers(client: httpx2.Client, filters: dict[str, list[str]]) -> list[str]:
    query = {"all": "true", "filters": json.dumps(filters)}
    answer = client.get("/containers/json", params=query).raise_for_status()
    return [str(container["Id"]) for container in answer.json()]


def _accept(answer: httpx2.Response) -> None:
    if answer.status_code not in _GONE:
        answer.raise_for_status()


@contextmanager
def _client(docker_host: str) -> Iterator[httpx2.Client]:
    parts = urlsplit(docker_host)
    if parts.scheme == "unix":
        transport, address = httpx2.HTTPTransport(uds=parts.path), "http://engine"
    elif parts.scheme in {"tcp", "http"}:
        transport, address = httpx2.HTTPTransport(), f"http://{parts.netloc}"
    else:
        message = f"DOCKER_HOST={docker_host}: only unix:// and tcp:// are supported"
        raise CannotProvide(message)
    with httpx2.Client(
        transport=transport, base_url=address, timeout=_TIMEOUT_S, trust_env=False
    ) as client:
        yield client
