"""What clients do while a fleet is upgraded: they go on."""

import asyncio
import uuid

from modelyard.contract.states import OperationState
from tests.faults.harness.checked_fleet import CheckedFleet
from tests.faults.harness.load import Request

PAUSE_S = 0.4
ROUNDS_OPEN = 3
"""Rounds that may not have ended when the next one begins: a slow machine is not flooded."""
ENDS_WITHIN_S = 120.0
TEMP_EVERY = 4
"""Rounds with one TEMP; it makes a container, which costs more than all else."""


class Traffic:
    """An inference on each of these jobs again and again, and now and then a TEMP."""

    def __init__(self, fleet: CheckedFleet, job_ids: list[str]) -> None:
        self._fleet = fleet
        self._job_ids = job_ids
        self._changed = asyncio.Condition()
        self._submitted: list[list[str]] = []
        """The operations of each round."""

    @property
    def operation_ids(self) -> list[str]:
        """All that was submitted."""
        return [operation_id for ids in self._submitted for operation_id in ids]

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await self._round(len(self._submitted))
            if len(self._submitted) > ROUNDS_OPEN:
                for operation_id in self._submitted[-ROUNDS_OPEN - 1]:
                    await self._fleet.ended(operation_id, within_s=ENDS_WITHIN_S)
            await asyncio.sleep(PAUSE_S)

    async def goes_on(self) -> None:
        """Return once everything of a whole round from now on has succeeded."""
        # A round that is not submitted yet may have begun before.
        wanted = len(self._submitted) + 2
        async with asyncio.timeout(2 * ENDS_WITHIN_S), self._changed:
            await self._changed.wait_for(lambda: len(self._submitted) >= wanted)
            ids = self._submitted[-1]
        for operation_id in ids:
            ended = await self._fleet.ended(operation_id, within_s=ENDS_WITHIN_S)
            assert ended["state"] == OperationState.SUCCEEDED, ended

    async def _round(self, number: int) -> None:
        requests = [self._request(job_id, "INFER") for job_id in self._job_ids]
        if number % TEMP_EVERY == 0:
            requests.append(self._request(self._fleet.job_id(), "TEMP", model="load-http"))
        # Both doors in turn.
        ids = await asyncio.gather(
            *(self._fleet.doors.submit(one, by_amqp=bool(number % 2)) for one in requests)
        )
        async with self._changed:
            self._submitted.append(ids)
            self._changed.notify_all()

    def _request(self, job_id: str, verb: str, **more: str) -> Request:
        request = Request(uuid.uuid4().hex, {"job_id": job_id, "operation_type": verb, **more})
        request.body["input"] = {"sleep": 0.05, "tag": request.operation_id}
        return request
