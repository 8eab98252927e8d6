"""The profile `batch`: run to completion, the exit code decides, the result is what it wrote."""

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES, HostCommand
from modelyard.contract.states import Phase
from modelyard.crash_points import crash_point
from worker.account import Account
from worker.containers import Containers
from worker.hooks import read_result
from worker.readiness import exited
from worker.runtime import ContainerFacts, ContainerRuntime


class Batch:
    """Runs one container to its end."""

    def __init__(self, runtime: ContainerRuntime, containers: Containers) -> None:
        self._runtime = runtime
        self._containers = containers

    async def run(self, command: HostCommand, facts: ContainerFacts, account: Account) -> str:
        """Return the result as JSON text; raises `exited` or `oom_killed` if the code is not 0."""
        await self._containers.start(command, facts, account)
        account.tell(Phase.INFERRING, container_id=facts.id)
        end = await self._runtime.wait_exit(facts.id)
        crash_point("worker.after_infer")
        if end.code != 0 or end.oom_killed:
            raise exited(end)
        account.tell(Phase.SAVING)
        return await read_result(await self._written(command, facts))

    async def _written(self, command: HostCommand, facts: ContainerFacts) -> bytes:
        path = command.model.result_file
        if path is not None:
            return await self._runtime.read_file(facts.id, path, max_bytes=MAX_RESULT_BYTES)
        # One byte more than is allowed, and the newline: then what is too large shows.
        output = await self._runtime.stdout_tail(facts.id, max_bytes=MAX_RESULT_BYTES + 2)
        last_line = output.rstrip().rpartition(b"\n")[2]
        if not last_line:
            raise ModelyardError(ErrorCode.BAD_RESULT, "The container wrote nothing to stdout.")
        return last_line
