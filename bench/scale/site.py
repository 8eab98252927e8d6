"""One fleet of simulated hosts on a stack, with a load on it: what a measurement needs."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.processes import read
from bench.scale.fleet import FleetPlan, running_fleet
from bench.scale.load import infer, opened_load
from bench.scale.polling import until
from bench.scale.stack import ACTIVE, ScaleStack
from deploy.local.processes import ProcessId
from modelyard.broker import Broker
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import Liveness, Verb
from modelyard.contract.topology import REPORTS_QUEUE, queues_of_host
from modelyard.process.tasks import together
from modelyard.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.processes import Usages
    from bench.profiling.profiler import Profiler
    from bench.scale.fleet import Fleet
    from bench.scale.load import Load

MODEL = ModelSpec(
    name="simulated",
    image="simulated:1",
    profile=Profile.OPEN_INFERENCE,
    port=8080,
    max_concurrency=16,
)
FLEET, LOAD = "simulated hosts", "load"
SET_UP_S = 300.0
"""Seconds that hosts may take to come online, jobs to be loaded, or a dispatcher to answer."""

HOSTS_IN_A_DECLARATION = 10
DECLARED_AT_ONCE = 3
"""Connections on which queues are declared at the same time."""


@dataclass(frozen=True, slots=True)
class Site:
    """A stack whose hosts are ONLINE. What takes longer than `SET_UP_S` raises an error."""

    stack: ScaleStack
    fleet: Fleet
    load: Load

    def usages(self) -> Usages:
        """Read what all processes have used so far."""
        own = {FLEET: self.fleet.process.pid, LOAD: os.getpid()}
        ours = {name: {one} for name, pid in own.items() if pid and (one := ProcessId.of(pid))}
        return read({**self.stack.processes(), **ours})

    async def load_jobs(self, jobs: Sequence[str]) -> None:
        """Create and load these jobs; raises `NotEndedError`."""
        verbs = (
            {"operation_type": Verb.DEPLOY_CREATE, "model": MODEL.name},
            {"operation_type": Verb.DEPLOY_LOAD},
        )
        requests = [
            JobRequest.model_validate({"job_id": job_id, **verb})
            for job_id in jobs
            for verb in verbs
        ]
        await self.load.run_all(requests, SET_UP_S)

    async def until_answering(self, job_id: str) -> float:
        """Wait until a dispatcher has answered an operation; return the seconds.

        Raises `NotEndedError`.
        """
        began = time.monotonic()
        await self.load.run_all([infer(job_id)], SET_UP_S)
        return time.monotonic() - began

    async def start_dispatcher(self, name: str) -> None:
        """Start a dispatcher and wait until it is ready; raises `TimeoutError`."""
        await _start_dispatcher(self.stack, name)


@asynccontextmanager
async def opened_site(
    hosts: int, slots: int, profiler: Profiler | None = None
) -> AsyncIterator[Site]:
    """Start servers, a dispatcher and a fleet; stop all at the end.

    Raises `TimeoutError` if not all hosts are ONLINE after `SET_UP_S` seconds, and `StackError`.
    """
    with ExitStack() as exits:
        stack = exits.enter_context(ScaleStack(profiler))
        await _start_dispatcher(stack, ACTIVE)
        broker = Broker(stack.rabbitmq.url, name="bench")
        store = Store(stack.mongodb.url, name="bench")
        exits.callback(store.close)
        await store.models.put(MODEL)
        plan = FleetPlan(stack.rabbitmq.url, hosts, slots)
        await _declare_queues(broker, list(plan.slots_by_host()))
        fleet = exits.enter_context(running_fleet(plan))
        await _until_online(store, fleet)
        async with AsyncExitStack() as closing:
            closing.push_async_callback(broker.close)
            load = await closing.enter_async_context(opened_load(broker))
            yield Site(stack, fleet, load)


async def _declare_queues(broker: Broker, host_ids: Sequence[str]) -> None:
    """Declare the hosts' queues, as an operator may do (`modelyard rabbitmq`).

    Left to the dispatcher's enrolment, a large fleet that boots at once would take minutes.
    """
    at_once = asyncio.Semaphore(DECLARED_AT_ONCE)

    async def declare(some: Sequence[str]) -> None:
        queues = [queue for host_id in some for queue in queues_of_host(host_id)]
        async with at_once:
            await broker.declare(
                queues, extra_bindings=[(REPORTS_QUEUE, host_id) for host_id in some]
            )

    await together(
        *(
            declare(host_ids[start : start + HOSTS_IN_A_DECLARATION])
            for start in range(0, len(host_ids), HOSTS_IN_A_DECLARATION)
        )
    )


async def _start_dispatcher(stack: ScaleStack, name: str) -> None:
    async def ready() -> bool:
        return stack.is_ready(name)

    stack.start_dispatcher(name)
    await until(ready, within_s=SET_UP_S)


async def _until_online(store: Store, fleet: Fleet) -> None:
    async def online() -> bool:
        fleet.check()
        found = Counter(one.liveness for one in await store.hosts.all())
        return found[Liveness.ONLINE] == fleet.plan.hosts

    await until(online, within_s=SET_UP_S)
