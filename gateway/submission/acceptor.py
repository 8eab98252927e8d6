"""The accepting of requests: named, looked up, made durable in MongoDB and RabbitMQ at once.

A request is accepted when either store has it. The record is what clients read; the message is
the fast way to the dispatcher; each repairs the other's absence.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import structlog

from gateway import views
from gateway.availability import Availability
from gateway.problems import FaultyRequestError
from gateway.submission.catalog_cache import CatalogCache
from gateway.submission.dual_write import DualWrite
from modelyard.contract.answers import Accepted, Fault
from modelyard.contract.errors import (
    ErrorCode,
    InvalidRequestError,
    ModelyardError,
    StoreUnavailableError,
)
from modelyard.contract.ids import DEFAULT_TENANT, new_operation_id, operation_id_for_key
from modelyard.contract.messages import JobRequest
from modelyard.store import Store
from modelyard.store.records import NewOperation, OperationRecord

log = structlog.get_logger(__name__)

LOOK_S = 0.5
"""How long a request waits for what MongoDB knows of its key and its names."""

Outcome = Accepted | ModelyardError


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A valid request under the id that its operation will have."""

    operation: NewOperation
    request: JobRequest
    """Its input may be left out: `operation.input_json` holds it."""
    under: str
    """The JSON pointer to the request in its body."""
    keyed: bool

    @classmethod
    def of(
        cls,
        request: JobRequest,
        key: str | None,
        *,
        under: str = "",
        retry_of: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Self:
        """Name a request: by its idempotency key, or anew."""
        operation_id = operation_id_for_key(key, tenant=tenant) if key else new_operation_id()
        operation = NewOperation.of(operation_id, request, "http", retry_of=retry_of, tenant=tenant)
        return cls(operation, request, under, keyed=key is not None)

    @property
    def operation_id(self) -> str:
        """The id of the operation."""
        return self.operation.operation_id

    def accepted(self, existing: OperationRecord | None = None) -> Accepted:
        """Return the answer: the operation is durable, in the state that it has by now."""
        fresh = views.accepted(self.operation_id, self.request.job_id, self.request.operation_type)
        return fresh.model_copy(update={"state": existing.state}) if existing else fresh

    def repeated(self, existing: OperationRecord) -> Outcome:
        """Return the answer to a key that is known: the same one, if the request is the same."""
        pending = (self.operation.payload_hash, self.operation.retry_of)
        if (existing.payload_hash, existing.retry_of) != pending:
            return InvalidRequestError(ErrorCode.IDEMPOTENCY_KEY_REUSED)
        return self.accepted(existing)


class Acceptor:
    """Takes valid requests in."""

    def __init__(
        self, store: Store, availability: Availability, dual_write: DualWrite, catalog: CatalogCache
    ) -> None:
        """`availability` is that of the store."""
        self._store = store
        self._availability = availability
        self._dual_write = dual_write
        self._catalog = catalog

    async def accept(self, pending: Sequence[PendingRequest]) -> list[Outcome]:
        """Return what became of each request, in order; the errors are for clients."""
        outcomes = await self._known_before(pending)
        fresh = [one for one in pending if one.operation_id not in outcomes]
        taken = await self._dual_write.take([(one.operation, one.request) for one in fresh])
        lost_race: list[PendingRequest] = []
        for one, place in zip(fresh, taken, strict=True):
            if not place.recorded and not place.published:
                outcomes[one.operation_id] = _nobody_took_it()
            elif one.keyed and place.recorded and not place.first:
                lost_race.append(one)
            else:
                outcomes[one.operation_id] = one.accepted()
        outcomes |= await self._lost_a_race(lost_race)
        return [outcomes[one.operation_id] for one in pending]

    async def _known_before(self, pending: Sequence[PendingRequest]) -> dict[str, Outcome]:
        """Answer what needs no operation: repeats of a key, and names that the catalog lacks.

        While MongoDB does not say, both are left to the dispatcher, which sees every message.
        """
        try:
            return await self._availability.ask(lambda: self._look(pending), within_s=LOOK_S)
        except StoreUnavailableError:
            return {}

    async def _look(self, pending: Sequence[PendingRequest]) -> dict[str, Outcome]:
        requests = [one.request for one in pending]
        known, no_models, no_datasets = await asyncio.gather(
            self._existing([one for one in pending if one.keyed]),
            self._catalog.models.missing({r.model for r in requests if r.model}),
            self._catalog.datasets.missing({r.dataset for r in requests if r.dataset}),
        )
        outcomes: dict[str, Outcome] = {}
        for one in pending:
            existing = known.get(one.operation_id)
            if existing is not None:
                outcomes[one.operation_id] = one.repeated(existing)
            elif one.request.model in no_models:
                outcomes[one.operation_id] = _unknown(one, "model", ErrorCode.UNKNOWN_MODEL)
            elif one.request.dataset in no_datasets:
                outcomes[one.operation_id] = _unknown(one, "dataset", ErrorCode.UNKNOWN_DATASET)
        return outcomes

    async def _lost_a_race(self, lost_race: Sequence[PendingRequest]) -> dict[str, Outcome]:
        """Answer requests whose key was taken between the look and the write."""
        try:
            existing = await self._availability.ask(
                lambda: self._existing(lost_race), within_s=LOOK_S
            )
        except StoreUnavailableError:
            existing = {}
        return {
            one.operation_id: one.repeated(record)
            if (record := existing.get(one.operation_id))
            else one.accepted()
            for one in lost_race
        }

    async def _existing(self, pending: Sequence[PendingRequest]) -> dict[str, OperationRecord]:
        if not pending:
            return {}
        return await self._store.operation_queries.get_many([one.operation_id for one in pending])


def _unknown(one: PendingRequest, field: str, code: ErrorCode) -> FaultyRequestError:
    message = f"The catalog has no {field} of this name."
    return FaultyRequestError([Fault(pointer=f"{one.under}/{field}", message=message)], code)


def _nobody_took_it() -> ModelyardError:
    return ModelyardError(
        ErrorCode.UNAVAILABLE,
        "Neither RabbitMQ nor MongoDB has confirmed it; whether it was taken is unknown. "
        "With the same Idempotency-Key it is safe to try again.",
    )
