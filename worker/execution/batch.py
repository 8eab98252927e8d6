"""The profile `batch`: the container runs to completion and its exit code decides the outcome."""

from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES, HostCommand
from modelyard.contract.states import Phase
from modelyard.process.crash_points import crash_point
from worker.attempts.attempt import Attempt
from worker.containers.lifecycle import ContainerLifecycle
from worker.containers.readiness import exited
from worker.engine.protocol import ContainerFacts, ContainerRuntime, FileTooLargeError
from worker.execution.large_contents import LargeContents, Turn, kept
from worker.model_server.results import BatchOutput, KeptResult, ResultReader, too_large

_LAST_LINE = "the last line of stdout"


class Batch:
    """Runs a container to completion and reads its result from a file or from stdout."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        containers: ContainerLifecycle,
        results: ResultReader,
        large: LargeContents,
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._results = results
        self._large = large

    async def run(
        self, command: HostCommand, facts: ContainerFacts, attempt: Attempt
    ) -> KeptResult:
        """Return the result; raises `exited` or `oom_killed` if the code is not 0."""
        await self._containers.meter.begin(command, facts, runs=True)
        await self._containers.start(command, facts, attempt)
        attempt.report(Phase.INFERRING, container_id=facts.id)
        end = await self._runtime.wait_exit(facts.id)
        crash_point("worker.after_infer")
        # Only the exit code counts: a program may survive the OOM kill of one of its children.
        if end.code != 0:
            raise exited(end)
        attempt.report(Phase.SAVING)
        async with self._large.turn() as turn:
            result = await self._results.read_output(await self._written(command, facts, turn))
            return await kept(result, command, attempt)

    async def _written(
        self, command: HostCommand, facts: ContainerFacts, turn: Turn
    ) -> BatchOutput:
        path, media_type = command.model.result_file, command.model.result_type
        if path is not None:
            return BatchOutput(path, media_type, await self._file(facts, path, turn))
        # One byte more than the limit, and the newline, so that a result that is too large is seen.
        output = await self._runtime.stdout_tail(facts.id, max_bytes=MAX_RESULT_BYTES + 2)
        last_line = _last_line(output)
        if len(last_line) > MAX_RESULT_BYTES:
            raise too_large()
        if last_line:
            return BatchOutput(_LAST_LINE, media_type, last_line)
        if await self._runtime.log_is_full(facts.id):
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                "The log no longer contains any stdout, because it was rotated: it keeps the last "
                "30 MB of stdout and stderr together. Write less, or use result_file.",
            )
        raise ModelyardError(ErrorCode.BAD_RESULT, "The container wrote nothing to stdout.")

    async def _file(self, facts: ContainerFacts, path: str, turn: Turn) -> bytes:
        try:
            return await self._runtime.read_file(facts.id, path, max_bytes=MAX_RESULT_BYTES)
        except FileTooLargeError:
            await turn.take()
            return await self._runtime.read_file(facts.id, path, max_bytes=MAX_CONTENT_BYTES)


def _last_line(output: bytes) -> bytes:
    """Return the last line as a terminal shows it: only what follows the last carriage return."""
    return output.rstrip().rpartition(b"\n")[2].rpartition(b"\r")[2]
