"""What is done to a Docker Engine besides stopping and starting it."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from deploy.local.docker_engine import DockerEngine


def die_at_removing(engine: DockerEngine, container_id: str) -> None:
    """Start an engine anew that was killed in the middle of removing a container.

    The moment lasts for milliseconds, so what it leaves on the disk is written there: the flag
    that Moby saves before it begins. It is the one from which an engine knows at its next start.
    """
    engine.kill()
    saved = engine.folder / "engine" / "containers" / container_id / "config.v2.json"
    config = json.loads(saved.read_text())
    config["State"]["RemovalInProgress"] = True
    saved.write_text(json.dumps(config))
    engine.start()


def _client(engine: DockerEngine) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=engine.url.removeprefix("unix://"))
    return httpx2.Client(transport=transport, base_url="http://engine", timeout=60)


def image_with(
    engine: DockerEngine, image: str, *changes: str, name: str = "", stop_signal: str = "SIGTERM"
) -> str:
    """Make an image of another one with lines of a Dockerfile such as `VOLUME /v`; its name."""
    name = name or f"modelyard/made-{uuid.uuid4().hex[:8]}"
    with _client(engine) as http:
        new = {"Image": image, "StopSignal": stop_signal}
        made = http.post("/containers/create", json=new).raise_for_status()
        container_id = made.json()["Id"]
        asked = {"container": container_id, "repo": name, "tag": "1", "changes": changes}
        http.post("/commit", params=asked).raise_for_status()
        http.delete(f"/containers/{container_id}").raise_for_status()
    return f"{name}:1"


@contextmanager
def volume_on(engine: DockerEngine, name: str, **options: str) -> Iterator[str]:
    """Make a named volume, and remove it afterwards."""
    with _client(engine) as http:
        asked = {"Name": name, "Driver": "local", "DriverOpts": options}
        http.post("/volumes/create", json=asked).raise_for_status()
        try:
            yield name
        finally:
            http.delete(f"/volumes/{name}", params={"force": "1"})


@contextmanager
def container_on(engine: DockerEngine, name: str, image: str) -> Iterator[str]:
    """Run a container that is somebody else's, and remove it afterwards; its id."""
    with _client(engine) as http:
        asked = {"Image": image, "Cmd": ["sleep", "1000"]}
        made = http.post("/containers/create", params={"name": name}, json=asked)
        container_id: str = made.raise_for_status().json()["Id"]
        try:
            http.post(f"/containers/{container_id}/start").raise_for_status()
            yield container_id
        finally:
            http.delete(f"/containers/{container_id}", params={"force": "1", "v": "1"})


def volumes_of(engine: DockerEngine) -> set[str]:
    """Return the names of all the engine's volumes."""
    with _client(engine) as http:
        found = http.get("/volumes").raise_for_status().json()["Volumes"] or []
    return {one["Name"] for one in found}


@contextmanager
def memory_mounted_at(engine: DockerEngine, folder: Path) -> Iterator[None]:
    """Have a tmpfs that anybody may write to on a folder, where the engine sees it."""
    process = engine.daemon.process
    assert process is not None
    inside = ("nsenter", "--target", str(process.pid), "--mount")
    subprocess.run((*inside, "mount", "-t", "tmpfs", "-o", "mode=777", "x", folder), check=True)
    try:
        yield
    finally:
        subprocess.run((*inside, "umount", folder), check=True)
