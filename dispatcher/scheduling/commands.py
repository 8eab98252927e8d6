"""Commands: each dispatched operation becomes a message in its host's queue."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from dispatcher.leadership import Term
from modelyard.broker import Broker
from modelyard.contract.errors import BrokerUnavailableError
from modelyard.contract.message_types import COMMANDS_TYPE
from modelyard.contract.messages import MAX_MESSAGE_BYTES, HostCommand, HostCommands
from modelyard.contract.states import SystemReason
from modelyard.contract.topology import HOSTS
from modelyard.process.batching import chunks_by_size
from modelyard.process.tasks import together
from modelyard.store.records import JobRecord, OperationRecord

log = structlog.get_logger(__name__)

MAX_COMMANDS = 100


@dataclass(frozen=True, slots=True)
class PackedCommand:
    """A command that is already serialized as JSON."""

    operation_id: str
    json: bytes


class CommandPublisher:
    """Publishes the commands of operations that are DISPATCHED in the record."""

    def __init__(self, broker: Broker, term: Term, *, default_timeout_s: float) -> None:
        self._broker = broker
        self._term = term
        self._default_timeout_s = default_timeout_s

    async def publish(
        self, operations: Iterable[OperationRecord], jobs: Mapping[str, JobRecord]
    ) -> None:
        """Publish each operation's command to its host's queue; one host's commands share messages.

        If the broker does not confirm a message, the sweep publishes its commands again: they are
        DISPATCHED in the record, and workers ignore a command that they already have. Raises
        `NotLeadingError` if the term is over.
        """
        self._term.check()
        by_boot: dict[tuple[str, str], list[PackedCommand]] = defaultdict(list)
        for operation in operations:
            job = jobs.get(operation.job_id or "")
            command = self._command(operation, job)
            if command is not None and operation.host_id and operation.incarnation:
                packed = PackedCommand(command.operation_id, command.model_dump_json().encode())
                by_boot[operation.host_id, operation.incarnation].append(packed)
        await together(
            *(
                self._send(host_id, incarnation, chunk)
                for (host_id, incarnation), commands in by_boot.items()
                for chunk in chunks_by_size(
                    commands,
                    lambda packed: len(packed.json) + 1,
                    max_bytes=MAX_MESSAGE_BYTES,
                    max_items=MAX_COMMANDS,
                )
            )
        )

    async def _send(self, host_id: str, incarnation: str, commands: list[PackedCommand]) -> None:
        envelope = HostCommands(host_id=host_id, incarnation=incarnation, commands=())
        head, tail = envelope.model_dump_json().encode().rsplit(b"[]", 1)
        body = head + b"[" + b",".join(packed.json for packed in commands) + b"]" + tail
        try:
            await self._broker.publish(HOSTS, host_id, body, message_type=COMMANDS_TYPE)
        except BrokerUnavailableError as error:
            ids = [packed.operation_id for packed in commands]
            log.warning("commands.not_published", host_id=host_id, ids=ids[:20], error=str(error))

    def _command(self, operation: OperationRecord, job: JobRecord | None) -> HostCommand | None:
        if job is None or job.spec is None or operation.verb is None:
            log.error("command.without_job", operation_id=operation.operation_id)
            return None
        generation = operation.generation or job.generation
        return HostCommand(
            operation_id=operation.operation_id,
            epoch=operation.epoch,
            verb=operation.verb,
            job_id=job.job_id,
            generation=generation,
            model=job.spec,
            dataset=job.dataset_spec,
            devices=job.devices_of(generation),
            container_id=job.container_id,
            input_json=operation.input_json,
            input_id=operation.input_id,
            stop_container=SystemReason.LOAD_CUT_SHORT.gave(operation.reason),
            timeout_s=operation.timeout_s or self._default_timeout_s,
        )
