"""RabbitMQ, MongoDB and Docker for one stack: servers that the user provides, or our own."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from deploy.local import engine_api, packages, replica_set
from deploy.local.amqp_probe import broker_version
from deploy.local.docker_engine import DockerEngine
from deploy.local.errors import StackError
from deploy.local.mongodb import MongoDB, find_mongod
from deploy.local.ports import LOOPBACK
from deploy.local.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from deploy.local.daemon import Daemon
    from deploy.local.layout import Given, Layout
    from deploy.local.progress import Progress


class Servers:
    """The servers of a stack. Provided servers are only checked for an answer, never stopped."""

    def __init__(self, layout: Layout, given: Given, progress: Progress) -> None:
        self._progress = progress
        self.rabbitmq = RabbitMQ(layout.data / "rabbitmq", logs=layout.logs)
        self.mongodb = MongoDB(layout.data / "mongodb", logs=layout.logs)
        self.docker = DockerEngine(layout.docker, logs=layout.logs)
        # A shell may still have the addresses of an earlier start.
        self.given = given.without(self._own())

    @property
    def amqp_url(self) -> str:
        return self.given.amqp_url or self.rabbitmq.url

    @property
    def mongo_url(self) -> str:
        return self.given.mongo_url or self.mongodb.url

    @property
    def docker_host(self) -> str:
        return self.given.docker_host or self.docker.url

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """The addresses in use that are of our own servers."""
        used = (self.amqp_url, self.mongo_url, self.docker_host)
        return tuple(one for one in used if one in self._own())

    def daemons(self) -> list[Daemon]:
        """List the processes of our own servers, whether they run or not."""
        return [self.rabbitmq.daemon, *self.mongodb.members, self.docker.daemon]

    def start(self) -> None:
        """Start the servers that were not provided and return when all of them are ready.

        The caller has to stop the servers, even if this raises.
        """
        self.given = replace(self.given, docker_host=self._existing_engine())
        self._provide_programs()
        self._use_given()
        began = time.monotonic()
        if not self.given.amqp_url:
            self.rabbitmq.launch()
        if not self.given.mongo_url:
            self.mongodb.launch()
        if not self.given.docker_host:
            self._start_docker()
        if not self.given.mongo_url:
            self._await_mongodb(began)
        if not self.given.amqp_url:
            self._await_rabbitmq(began)

    def stop(self) -> None:
        """Stop our own servers, whether this object started them or an earlier command did."""
        if not self.given.mongo_url:
            self.mongodb.stop()
        if not self.given.amqp_url:
            self.rabbitmq.stop()
        belongs_to_other_command = self.docker.daemon.owner and not self.docker.daemon.ours
        if not self.given.docker_host and not belongs_to_other_command:
            self.docker.stop()

    def release(self) -> None:
        """Keep our own servers running after the command that started them has ended."""
        for daemon in self.daemons():
            daemon.release()

    def _own(self) -> tuple[str, ...]:
        return self.rabbitmq.url, self.mongodb.url, self.docker.url

    def _existing_engine(self) -> str | None:
        """Find the provided engine, else the default one, else that of the background stack."""
        if self.given.docker_host:
            return self.given.docker_host
        if engine_api.version(engine_api.DEFAULT):
            return engine_api.DEFAULT
        return self.docker.url if self.docker.daemon.released else None

    def _provide_programs(self) -> None:
        needs = [*packages.IMAGES]
        if not self.given.amqp_url:
            needs += packages.BROKER
        if not self.given.docker_host:
            needs += packages.ENGINE
        packages.ensure(needs, self._progress.say)
        if not self.given.mongo_url:
            find_mongod()

    def _use_given(self) -> None:
        given = self.given
        if given.docker_host:
            engine = engine_api.version(given.docker_host)
            self._report("Docker Engine", given.docker_host, bool(engine))
        if given.mongo_url:
            answers = replica_set.answers(given.mongo_url)
            self._report("MongoDB", "MODELYARD_MONGO_URL", answers)
        if given.amqp_url and given.amqp_url.startswith("amqp://"):
            self._report("RabbitMQ", "MODELYARD_AMQP_URL", bool(broker_version(given.amqp_url)))

    def _report(self, name: str, origin: str, answers: bool) -> None:  # noqa: FBT001
        if not answers:
            message = f"{name} does not answer; its address comes from {origin}."
            raise StackError(message)
        self._progress.say(f"Using {name} from {origin}")

    def _start_docker(self) -> None:
        with self._progress.step("Docker Engine") as step:
            self.docker.start()
            step.result = f"Docker Engine {self.docker.version} ready on {self.docker.url}"

    def _await_mongodb(self, began: float) -> None:
        with self._progress.step("MongoDB", since=began) as step:
            self.mongodb.wait_ready()
            where = replica_set.addresses(self.mongodb.ports)
            step.result = f"MongoDB {self.mongodb.version} ready on {where}"

    def _await_rabbitmq(self, began: float) -> None:
        with self._progress.step("RabbitMQ", since=began) as step:
            self.rabbitmq.wait_ready()
            where = f"{LOOPBACK}:{self.rabbitmq.port}"
            step.result = f"RabbitMQ {self.rabbitmq.version} ready on {where}"
