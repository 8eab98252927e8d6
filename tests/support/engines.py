"""What is done to a Docker Engine besides stopping and starting it."""

import json

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
