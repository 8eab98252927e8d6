"""A fleet on a virtual clock for stories about models in memory."""

from typing import Any

from gateway.explaining import explanation_of
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.states import OperationState
from modelyard.contract.views import Explanation
from tests.statemachine.checks import listed_reasons
from tests.statemachine.loop import VirtualLoop
from tests.statemachine.world import World

Document = dict[str, Any]
SOON_S = 2.0


class Yard:
    """One dispatcher, and the host h1: two slots, and one device of 8 GiB."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.world = World(loop, seed=3)
        self.leader = self.world.start_dispatcher()
        self.world.start_worker("h1")
        loop.advance(3.0)

    def ask(self, job_id: str, verb: str, **more: Any) -> str:
        """Ask for an operation and return its id at once."""
        if verb == "INFER":
            more["input"] = 1
        key = self.world.submit({"job_id": job_id, "operation_type": verb, **more})
        return operation_id_for_key(key)

    def create(self, job_id: str, model: str) -> None:
        """Create a job; its model is not in memory."""
        made = self.ask(job_id, "DEPLOY_CREATE", model=model)
        self.advance(SOON_S)
        assert self.operation(made)["state"] == "SUCCEEDED"

    def used(self, job_id: str, model: str) -> None:
        """Create a job and have its model used once."""
        self.create(job_id, model)
        infer = self.ask(job_id, "INFER")
        self.until_ended(infer)
        assert self.operation(infer)["state"] == "SUCCEEDED"

    def advance(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    def until_ended(self, operation_id: str, *, within_s: float = 60.0) -> float:
        """Advance until an operation has ended; return the seconds that this took."""
        began = self.world.loop.time()
        while not OperationState(self.operation(operation_id)["state"]).terminal:
            assert self.world.loop.time() - began < within_s, self.operation(operation_id)
            self.advance(0.1)
        return self.world.loop.time() - began

    def operation(self, operation_id: str) -> Document:
        found = self.world.database.documents("operations")
        return next((one for one in found if one["_id"] == operation_id), {"state": "QUEUED"})

    def explain(self, operation_id: str) -> Explanation:
        """Return why an operation waits, as a gateway says it."""
        found = self.world.loop.run(explanation_of(self.world.front.store, operation_id))
        assert found is not None
        return found

    def listed(self, operation_id: str) -> tuple[str, ...]:
        """Return what a list of operations says of why one waits in its line."""
        return listed_reasons(self.world)[operation_id]

    def ours(self, job_id: str) -> list[tuple[str, str, str]]:
        """Return verb, reason and state of the operations that Modelyard itself submitted."""
        found = self.world.database.documents("operations")
        return [
            (one["verb"], one["reason"], one["state"])
            for one in sorted(found, key=lambda it: it.get("line") or 0)
            if one["job_id"] == job_id and one["source"] == "system"
        ]

    def state(self, job_id: str) -> str:
        (job,) = [one for one in self.world.database.documents("jobs") if one["_id"] == job_id]
        state: str = job["state"]
        return state

    @property
    def held(self) -> dict[str, int]:
        """Bytes of the device that each job holds."""
        (host,) = self.world.database.documents("hosts")
        return {
            one["job_id"]: sum(one["resident"]["devices"].values())
            for one in host["reservations"]
            if one["resident"]
        }
