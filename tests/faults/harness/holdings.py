"""What the processes of a fleet hold (I11): each boot is looked at first once it is ready."""

import asyncio

from deploy.local.processes import ProcessId
from deploy.local.services import Service, gateway_ready
from tests.e2e.fleet import Fleet
from tests.support.invariants.processes import Holding

INTERVAL_S = 0.2
READY = {
    "gateway": b'"gateway.listening"',
    "dispatcher": b'"dispatcher.ready"',
    "worker": b'"host.online"',
}
"""What each kind of process logs once it is; a gateway has to say it by HTTP, too."""


class Holdings:
    """Looks at each process once it is ready, and at all of them whenever it is asked."""

    def __init__(self, fleet: Fleet, first: dict[str, Holding]) -> None:
        self._fleet = fleet
        self.first = first
        """What each process held when it was seen first: what leaks bit by bit adds up."""
        self._booting: dict[str, int] = {}
        """Where the log of each process begins that is not known to be ready yet."""

    def now(self) -> dict[str, Holding]:
        """Look at all that run."""
        found = {
            name: Holding.of(process)
            for name, service in self._fleet.services.items()
            if (process := service.daemon.process) is not None
        }
        return {name: one for name, one in found.items() if one is not None}

    def look(self) -> None:
        """Look at what was not seen before; the whole fleet is ready."""
        for name, now in self.now().items():
            then = self.first.get(name)
            if then is None or then.process != now.process:
                self.first[name] = now

    def boots(self, name: str) -> None:
        """Note that a process is about to be launched."""
        log = self._fleet.services[name].daemon.log
        self._booting[name] = log.stat().st_size if log.exists() else 0

    async def run(self) -> None:
        """Look at each new process once it is ready; runs until cancelled."""
        while True:
            await self.look_at_new()
            await asyncio.sleep(INTERVAL_S)

    async def look_at_new(self) -> None:
        """Look at those launched processes that are ready by now, as the fleet was at first."""
        for name in list(self._booting):
            service = self._fleet.services[name]
            process = service.daemon.process
            if process is not None and await self._is_ready(name, service):
                self._compare_job(name, process)

    def _compare_job(self, name: str, process: ProcessId) -> None:
        if self._fleet.services[name].daemon.process != process:
            return  # it was another one that was ready
        now = Holding.of(process)
        if now is not None:
            self.first[name] = now
            del self._booting[name]

    async def _is_ready(self, name: str, service: Service) -> bool:
        with service.daemon.log.open("rb") as log:
            log.seek(self._booting[name])
            said = READY[name.partition("-")[0]] in log.read()
        if not said or name != "gateway":
            return said
        return await asyncio.to_thread(gateway_ready, self._fleet.url)
