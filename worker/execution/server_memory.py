"""Loads and unloads the model of a server that itself says whether it is in memory.

Only for `InMemory.SERVER_SAYS_SO`. Silence proves nothing: a busy server with one thread answers
late, and a hook then waits until the server gets to it.
"""

from modelyard.contract.catalog.entries import Hook
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from worker.containers.datasets import mount_target
from worker.containers.readiness import RepeatedProbe, address_of
from worker.engine.protocol import ContainerFacts
from worker.model_server.client import ModelServer, RefusedByServerError
from worker.model_server.probes import ProbeVerdict
from worker.model_server.profiles import dialogue_of
from worker.model_server.templates import Placeholders

_NO_SUCH_PATH = 404
_NO_SUCH_METHOD = frozenset({405, 501})
_REPOSITORY_INDEX = Hook(path="/v2/repository/index", body={})
_LOADS_BY_ITSELF = "explicit model load / unload is not allowed"
"""Triton's message unless it runs with `--model-control-mode=explicit`.

The message decides and not the status, which differs between its versions.
"""


class ServerMemory:
    """The model in the memory of one server, as one operation uses it."""

    def __init__(self, server: ModelServer, command: HostCommand, facts: ContainerFacts) -> None:
        """`facts` is a running container; raises `exited` or `oom_killed` if it does not run."""
        self._server = server
        self._dialogue = dialogue_of(command.model)
        self._address = address_of(facts)
        self._fillings = fillings_of(command)
        self._seconds = command.model.load_timeout_s
        self._waits_for = "be asked"
        """What the operation waits for; the error names it if the time is over."""
        self._refusal: RefusedByServerError | None = None
        self.ready = (
            None
            if self._dialogue.ready is None
            else RepeatedProbe(server, facts, self._dialogue.ready)
        )

    async def load(self) -> None:
        """Load the model and return once it is ready. The caller sets the deadline."""
        if self.ready is not None and await self._first_answer(self.ready) is ProbeVerdict.YES:
            return
        if self._dialogue.load is not None:
            self._waits_for = f"answer {self._dialogue.load.method} {self._dialogue.load.path}"
            try:
                await self._send(self._dialogue.load, ErrorCode.LOAD_FAILED)
            except RefusedByServerError as refusal:
                if not await self._manages_itself(refusal):
                    raise
                self._refusal = refusal
        if self.ready is not None:
            self._waits_for = "answer ready"
            await self.ready.until({ProbeVerdict.YES}, self._seconds, self._waits_for)

    async def unload(self) -> bool:
        """Unload the model and return once it is not ready any more.

        Returns false if the server can't unload, because it manages its memory itself.
        """
        if self._dialogue.unload is None:
            return True
        try:
            await self._send(self._dialogue.unload, ErrorCode.UNLOAD_FAILED)
        except RefusedByServerError as refusal:
            if not await self._manages_itself(refusal):
                raise
            return False
        if self.ready is not None:
            try:
                await self.ready.until({ProbeVerdict.NO}, self._seconds, "stop to answer ready")
            except ModelyardError as error:
                raise ModelyardError(
                    ErrorCode.UNLOAD_FAILED, error.message, **error.detail
                ) from error
        return True

    async def reports_unloaded(self) -> bool:
        """Return whether the server answers that the model is not in memory.

        False if the server can't be asked, is silent or refuses the connection.
        """
        if self.ready is None:
            return False
        heard = await self.ready.ask()
        return heard.answer is ProbeVerdict.NO and heard.status is not None

    def not_loaded(self) -> ModelyardError:
        """Return the error for a model that was not ready in time, with the last answers."""
        what, asked = self._waits_for, self.ready
        if asked is None:
            error = ModelyardError(
                ErrorCode.NOT_READY, f"The container did not {what} within {self._seconds:g} s."
            )
        else:
            error = asked.not_ready(self._seconds, what)
        if self._refusal is None:
            return error
        explanation = (
            f"The server answered {self._refusal.status} to {self._refusal.asked}, so it has no "
            "repository API and has to load the model by itself."
        )
        return ModelyardError(
            error.code,
            f"{explanation} {error.message}",
            **error.detail,
            load_status=self._refusal.status,
            load_body=self._refusal.body,
        )

    async def _first_answer(self, ready: RepeatedProbe) -> ProbeVerdict:
        """Return the server's answer, YES or NO; while it is silent, ask again."""
        last = ready.last
        if last is None or last.answer is ProbeVerdict.SILENT:
            last = await ready.until(
                {ProbeVerdict.YES, ProbeVerdict.NO}, self._seconds, self._waits_for
            )
        return last.answer

    async def _manages_itself(self, refusal: RefusedByServerError) -> bool:
        """Return whether the refusal means that the server loads and unloads by itself.

        A server may lack the repository extension of the Open Inference Protocol; then it answers
        404. A server with the extension also answers 404, for a model that it does not know, but
        such a server has an index of models.
        """
        if not self._dialogue.may_manage_itself:
            return False
        if refusal.status in _NO_SUCH_METHOD or _LOADS_BY_ITSELF in refusal.body:
            return True
        if refusal.status != _NO_SUCH_PATH:
            return False
        try:
            await self._send(_REPOSITORY_INDEX, refusal.code)
        except RefusedByServerError:
            return True
        return False

    async def _send(self, hook: Hook, failure: ErrorCode) -> None:
        await self._server.send(self._address, hook, self._fillings, failure=failure)


def fillings_of(command: HostCommand) -> Placeholders:
    """Return the values of the placeholders in a command's hooks."""
    return Placeholders(
        model=command.model.served_name,
        dataset=mount_target(command.dataset, command.model) or "",
        input_json=command.input_json,
    )
