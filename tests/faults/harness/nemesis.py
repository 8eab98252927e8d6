"""Something that breaks a fleet, one thing after the other, by a seed that repeats it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.faults.harness.checked_fleet import CheckedFleet

Say = Callable[[str], None]
Action = Callable[["Nemesis"], Awaitable[None]]


@dataclass
class Nemesis:
    """Breaks one thing at a time and repairs it before it breaks the next."""

    fleet: CheckedFleet
    choice: random.Random
    say: Say
    began: float = field(default_factory=time.monotonic)
    done: list[str] = field(default_factory=list)

    async def rage(
        self, actions: Sequence[Action], *, seconds: float, pause_s: tuple[float, float]
    ) -> None:
        """Act at random until the time is over; what is under way is repaired."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            await self._do(self.choice.choice(actions))
            await asyncio.sleep(self.choice.uniform(*pause_s))

    async def each_in_turn(self, actions: Sequence[Action], *, until: asyncio.Task[object]) -> None:
        """Act in turn every few seconds until a task is done."""
        while not until.done():
            for action in actions:
                if until.done():
                    return
                await self._do(action)
                await asyncio.wait((until,), timeout=self.choice.uniform(1.5, 3))

    async def _do(self, action: Action) -> None:
        await action(self)
        self.fleet.invariants.disturbed()

    def note(self, what: str) -> None:
        """Say what is done, with the seconds since the beginning."""
        self.done.append(what)
        self.say(f"{time.monotonic() - self.began:7.1f} s  {what}")

    def some(self, kind: str) -> str:
        """Choose one of the processes of a kind."""
        names = [name for name in self.fleet.processes.services if name.startswith(kind)]
        return self.choice.choice(names)


def kill(kind: str) -> Action:
    """Return: kill a process of this kind and start it again."""

    async def act(nemesis: Nemesis) -> None:
        name = nemesis.some(kind)
        nemesis.note(f"kill {name}")
        await nemesis.fleet.kill(name)
        await asyncio.sleep(nemesis.choice.uniform(0, 2))
        await nemesis.fleet.launch(name)

    return act


def freeze(kind: str, *, most_s: float) -> Action:
    """Return: freeze a process of this kind for up to `most_s` seconds."""

    async def act(nemesis: Nemesis) -> None:
        name, seconds = nemesis.some(kind), nemesis.choice.uniform(1, most_s)
        nemesis.note(f"freeze {name} for {seconds:.1f} s")
        with nemesis.fleet.frozen(name):
            await asyncio.sleep(seconds)

    return act


async def stop_gateway(nemesis: Nemesis) -> None:
    """Stop the gateway in an orderly way and start it again."""
    nemesis.note("stop gateway")
    await nemesis.fleet.stop("gateway")
    await nemesis.fleet.launch("gateway")


async def kill_broker(nemesis: Nemesis) -> None:
    """Kill RabbitMQ and start it again."""
    nemesis.note("kill rabbitmq")
    broker = nemesis.fleet.servers.rabbitmq
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)


async def freeze_broker(nemesis: Nemesis) -> None:
    """Freeze RabbitMQ for up to 15 seconds."""
    seconds = nemesis.choice.uniform(1, 15)
    nemesis.note(f"freeze rabbitmq for {seconds:.1f} s")
    nemesis.fleet.servers.rabbitmq.pause()
    try:
        await asyncio.sleep(seconds)
    finally:
        nemesis.fleet.servers.rabbitmq.resume()


async def kill_member(nemesis: Nemesis) -> None:
    """Kill a member of the replica set and start it again."""
    mongodb = nemesis.fleet.servers.mongodb
    index = nemesis.choice.randrange(len(mongodb.members))
    nemesis.note(f"kill mongod-{index}")
    await asyncio.to_thread(mongodb.members[index].kill)
    await asyncio.sleep(nemesis.choice.uniform(0, 5))
    await asyncio.to_thread(mongodb.launch_member, index)
    await asyncio.to_thread(mongodb.wait_ready)


async def freeze_engine(nemesis: Nemesis) -> None:
    """Freeze a Docker Engine for up to 25 seconds."""
    host_id = nemesis.choice.choice(list(nemesis.fleet.engines))
    seconds = nemesis.choice.uniform(1, 25)
    nemesis.note(f"freeze dockerd of {host_id} for {seconds:.1f} s")
    engine = nemesis.fleet.servers.engines[host_id]
    engine.pause()
    try:
        await asyncio.sleep(seconds)
    finally:
        engine.resume()


async def restart_engine(nemesis: Nemesis) -> None:
    """Restart a Docker Engine; its containers die with it."""
    host_id = nemesis.choice.choice(list(nemesis.fleet.engines))
    nemesis.note(f"restart dockerd of {host_id}")
    await asyncio.to_thread(nemesis.fleet.servers.engines[host_id].restart)


EVERYTHING: tuple[Action, ...] = (
    kill("worker"),
    kill("worker"),
    freeze("worker", most_s=30),
    kill("dispatcher"),
    kill("dispatcher"),
    freeze("dispatcher", most_s=30),
    kill("gateway"),
    stop_gateway,
    kill_broker,
    freeze_broker,
    kill_member,
    freeze_engine,
    restart_engine,
)
IN_TURN: tuple[Action, ...] = (
    kill("worker-h1"),
    kill("dispatcher"),
    kill("worker-h2"),
    kill_broker,
)
