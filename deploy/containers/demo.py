"""`make compose-demo`: the original system's five calls through `deploy/compose.yaml`.

Secrets come from `deploy/setup.sh`, as an operator makes them; ports, data and project are private.
After the model is loaded the worker and the leading dispatcher are killed: the inference that
follows is answered by the same container. The exit status is 0 only if every result is right.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from deploy.containers.engine import engine
from deploy.containers.project import ComposeProject
from deploy.containers.service_images import (
    PREFIX,
    STAND_INS,
    ensure_service_images,
    ensure_stand_ins,
    stand_in_of,
)
from deploy.local import engine_api, signals
from deploy.local.demo import (
    LATER_CALLS,
    Step,
    caller,
    check,
    read_digits,
    register,
    send,
    table,
    watch,
)
from deploy.local.errors import StackError
from deploy.local.images import BASE, DIGITS, ensure_base
from deploy.local.layout import ROOT
from deploy.local.locks import exclusive
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.progress import Progress
from deploy.local.services import gateway_ready, host_online, url_on
from deploy.local.stack import DIGITS_DATASET, provide_images
from deploy.local.waiting import wait_until
from modelyard import __version__
from modelyard.client import Modelyard
from modelyard.contract.states import Verb

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = "modelyard-demo"
HOST_ID = "compose-demo"
DISPATCHERS = ("dispatcher-1", "dispatcher-2")
_DEPLOY = ROOT / "deploy"
_FOLDER = ROOT / "var" / "compose-demo"
_DATASETS = ROOT / "var" / "datasets"
_ONLINE_S = 120.0
_BACK_S = 90.0
_SETUP_S = 120.0


def main() -> int:
    """Run the demonstration; return the exit status."""
    progress = Progress()
    with ExitStack() as exits:
        exits.enter_context(exclusive(_FOLDER.with_suffix(".lock"), seconds=0))
        exits.enter_context(signals.raised())
        docker_host = exits.enter_context(engine(progress))
        with progress.step("Images") as step:
            provide_images(docker_host, _DATASETS, step.note)
            ensure_service_images(docker_host, step.note)
            environment = _servers(docker_host, step.note)
            step.result = "Images of the services ready"
        port = free_port()
        project = _prepared(docker_host, environment, port)
        exits.callback(_remove, project, docker_host)
        with progress.step("Compose") as step:
            key = _started(project, url_on(port), step.note)
            step.result = f"Gateway ready on {url_on(port)}, host {HOST_ID} online"
        wrong = _calls(project, url_on(port), key, progress)
    progress.say(f"Wrong: {', '.join(wrong)}" if wrong else "All results are right.")
    return 1 if wrong else 0


def _servers(docker_host: str, note: Callable[[str], None]) -> dict[str, str]:
    """Return which images of RabbitMQ and MongoDB to use: their own where a registry answers."""
    if ensure_base(docker_host, note).image != BASE:
        return {}
    ensure_stand_ins(docker_host, note)
    return {f"MODELYARD_{server.upper()}_IMAGE": stand_in_of(server) for server in STAND_INS}


def _prepared(docker_host: str, servers: dict[str, str], port: int) -> ComposeProject:
    """Make secrets and settings with `deploy/setup.sh`; return the project, not started."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    broker_port = free_port()
    own = {
        "DOCKER_HOST": docker_host,
        "MODELYARD_SECRETS": str(_FOLDER / "secrets"),
        "MODELYARD_ENV_FILE": str(_FOLDER / "env"),
        "MODELYARD_IMAGES": PREFIX,
        "MODELYARD_VERSION": __version__,
        "MODELYARD_AMQP_PORT": str(broker_port),
        "MODELYARD_DOCKER_SOCKET": docker_host.removeprefix("unix://"),
    }
    done = subprocess.run(
        [_DEPLOY / "setup.sh", HOST_ID],
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SETUP_S,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"deploy/setup.sh: {done.stderr.strip()}")
    settings = {
        **own,
        **servers,
        "COMPOSE_PROFILES": "core",
        "MODELYARD_DATASETS": str(_DATASETS),
        "MODELYARD_ALLOWED_IMAGES": json.dumps([DIGITS.partition(":")[0]]),
        "MODELYARD_GATEWAY_LISTEN": f"{LOOPBACK}:{port}",
    }
    files = [_DEPLOY / "compose.yaml"]
    return ComposeProject(PROJECT, files, env_file=_FOLDER / "env", environment=settings)


def _started(project: ComposeProject, url: str, note: Callable[[str], None]) -> str:
    """Start all, and create the first API key as an operator does; return it with the host online.

    Raises `StackError` with the end of the logs.
    """
    try:
        project.up(note)
        key = project.once("cli", "keys", "bootstrap", "--name", "demo", "--expires", "1h")
        wait_until(lambda: gateway_ready(url), _ONLINE_S, "the gateway")
        wait_until(lambda: host_online(url, HOST_ID, key), _ONLINE_S, f"host {HOST_ID} online")
    except (TimeoutError, StackError) as error:
        raise StackError(f"{error}\n{project.logs()}") from None
    return key


def _calls(project: ComposeProject, url: str, key: str, progress: Progress) -> list[str]:
    """Send the calls and break things between them; return what was wrong."""
    digits = read_digits(_DATASETS / DIGITS_DATASET)
    with Modelyard(url, api_key=key) as yard, caller(url, key) as http:
        register(yard, _DATASETS / DIGITS_DATASET)
        steps = [send(http, Verb.DEPLOY_CREATE)]
        watch(yard, steps, progress)
        container_id = (steps[0].view and steps[0].view.container_id) or ""
        steps.append(send(http, Verb.DEPLOY_LOAD, container_id))
        watch(yard, steps, progress)
        wrong = _breaks(project, container_id, progress)
        later = [verb for verb in LATER_CALLS if verb is not Verb.DEPLOY_LOAD]
        steps += [send(http, verb, container_id, digits[0]) for verb in later]
        watch(yard, steps, progress)
        check(yard, steps, digits)
    progress.console.print(table(steps))
    return wrong + _wrong_steps(steps, container_id)


def _breaks(project: ComposeProject, container_id: str, progress: Progress) -> list[str]:
    """Kill the worker and the leading dispatcher; return what is wrong then."""
    wrong = []
    if any(project.inspect_container(container_id)["NetworkSettings"]["Ports"].values()):
        wrong.append("the model's port is published")
    leader = _leader(project)
    for service in ("worker", leader):
        before = project.inspect(service)["RestartCount"]
        project.kill_processes(service)

        def is_back(service: str = service, before: int = before) -> bool:
            now = project.inspect(service)
            return bool(now["RestartCount"] > before and now["State"]["Running"])

        wait_until(is_back, _BACK_S, f"{service} running again")
        progress.say(f"  killed {service}; its container was restarted")
    if not project.inspect_container(container_id)["State"]["Running"]:
        wrong.append("the model did not outlive its worker")
    return wrong


def _leader(project: ComposeProject) -> str:
    """Return the dispatcher that began to lead last."""
    lines = [
        line for line in project.logs(*DISPATCHERS).splitlines() if "dispatcher.leading" in line
    ]
    leading = lines[-1] if lines else ""
    return next((name for name in DISPATCHERS if name in leading), DISPATCHERS[0])


def _wrong_steps(steps: list[Step], container_id: str) -> list[str]:
    wrong: list[str] = [step.verb for step in steps if not step.right]
    same_job = [step for step in steps if step.verb is not Verb.TEMP and step.view is not None]
    if {step.view.container_id for step in same_job if step.view} != {container_id}:
        wrong.append("another container than the first answered")
    return wrong


def _remove(project: ComposeProject, docker_host: str) -> None:
    with signals.ignored():
        project.down()
        engine_api.remove_containers(docker_host, f"modelyard.host={HOST_ID}")
        shutil.rmtree(_FOLDER, ignore_errors=True)
