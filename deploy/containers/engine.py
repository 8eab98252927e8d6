"""The engine that images are built on and containers run on: a given one, or a private one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.local import engine_api, packages, signals
from deploy.local.docker_engine import DockerEngine
from deploy.local.errors import StackError
from deploy.local.layout import Given, Layout
from deploy.local.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.local.progress import Progress


@contextmanager
def engine(progress: Progress) -> Iterator[str]:
    """Give the URL of the engine in DOCKER_HOST, of the machine's own, or of a private one.

    A private engine keeps its images, and is stopped at the end, unless `make up` uses it.
    """
    given = Given.by(os.environ).docker_host or engine_api.DEFAULT
    if engine_api.version(given):
        progress.say(f"Using Docker Engine {engine_api.version(given)} on {given}")
        yield given
        return
    if given != engine_api.DEFAULT:
        raise StackError(f"No Docker Engine answers; its address comes from DOCKER_HOST: {given}")
    packages.ensure((*packages.IMAGES, *packages.ENGINE), progress.say)
    layout = Layout.background()
    private = DockerEngine(layout.docker, logs=layout.logs)
    if private.daemon.released and engine_api.version(private.url):
        yield private.url
        return
    with exclusive(layout.docker.with_suffix(".lock"), seconds=0), signals.raised():
        with progress.step("Docker Engine") as step:
            private.start()
            step.result = f"Docker Engine {private.version} ready on {private.url}"
        try:
            yield private.url
        finally:
            with signals.ignored():
                private.stop()
