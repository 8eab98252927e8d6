"""The acceptor: checks requests, then makes them durable in MongoDB and RabbitMQ at the same time.

A request is accepted when either store has it. Clients read the record; the message is the fast
way to the dispatcher. If one of the two is missing, the dispatcher works from the other.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import structlog

from gateway import views
from gateway.availability import Availability
from gateway.inference.leaving_jobs import LeavingJobs
from gateway.monitoring.metrics import GatewayMetrics
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
from modelyard.scheduling.leaving import TAKES_OUT
from modelyard.store import Store
from modelyard.store.records import NewOperation, OperationRecord

log = structlog.get_logger(__name__)

LOOKUP_S = 0.5
"""How long a request waits for MongoDB to look up its key, its model and its dataset."""

Outcome = Accepted | ModelyardError
_Input = tuple[str, str]
"""A tenant, and the id of an input that only this tenant may name."""


class KeyReusedError(InvalidRequestError):
    """The idempotency key belongs to another request, on the job `job_id`."""

    def __init__(self, existing: OperationRecord) -> None:
        key = f"The key is that of operation {existing.operation_id}, "
        what = "which was deleted." if existing.deleted else "whose request was another one."
        super().__init__(ErrorCode.IDEMPOTENCY_KEY_REUSED, key + what)
        self.job_id = existing.job_id


class JobLeavingError(ModelyardError):
    """The job of a movable request is leaving: another one is to be chosen. Nothing was stored."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A valid request and its operation, which is not durable yet."""

    operation: NewOperation
    request: JobRequest
    """Its `input` may be missing: `operation.input_json` has it."""
    under: str
    """The JSON pointer to the request in its body."""
    keyed: bool
    """True if the request has an idempotency key."""
    movable: bool = False
    """True if the gateway chose its job, and can choose another one if that job is leaving."""

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
        """Give a request its operation id: from its idempotency key, or a new one."""
        operation_id = operation_id_for_key(key, tenant=tenant) if key else new_operation_id()
        operation = NewOperation.of(operation_id, request, "http", retry_of=retry_of, tenant=tenant)
        return cls(operation, request, under, keyed=key is not None)

    @property
    def operation_id(self) -> str:
        """The id of the operation."""
        return self.operation.operation_id

    @property
    def named_input(self) -> _Input | None:
        """The uploaded input that it names, if any."""
        input_id = self.request.input_id
        return None if input_id is None else (self.operation.tenant, input_id)

    def accepted_now(self, store: Store) -> Self:
        """Return the request with this moment as that of its acceptance, if the time is known."""
        (operation,) = store.operations.accepted_now([self.operation])
        return replace(self, operation=operation)

    def accepted(self, existing: OperationRecord | None = None) -> Accepted:
        """Return the answer for a durable operation, with its state if it existed before."""
        fresh = views.accepted(self.operation_id, self.request.job_id, self.request.operation_type)
        return fresh.model_copy(update={"state": existing.state}) if existing else fresh

    def repeated(self, existing: OperationRecord) -> Outcome:
        """Return the answer to a repeated key: the existing operation, if the request is equal."""
        if existing.deleted:
            return KeyReusedError(existing)
        wanted = (self.operation.payload_hash, self.operation.retry_of)
        if (existing.payload_hash, existing.retry_of) != wanted:
            return KeyReusedError(existing)
        return self.accepted(existing)


class Acceptor:
    """Accepts valid requests."""

    def __init__(
        self,
        store: Store,
        availability: Availability,
        dual_write: DualWrite,
        catalog: CatalogCache,
        leaving: LeavingJobs,
        metrics: GatewayMetrics,
    ) -> None:
        """`availability` is that of the store."""
        self._metrics = metrics
        self._leaving = leaving
        self._store = store
        self._availability = availability
        self._dual_write = dual_write
        self._catalog = catalog

    async def accept(self, pending: Sequence[PendingRequest]) -> list[Outcome]:
        """Return the outcome of each request, in order; the errors are for clients."""
        for one in pending:
            if one.request.operation_type in TAKES_OUT:
                self._leaving.mark(one.request.job_id)
        outcomes = await self._answer_without_write(pending)
        # From here to the write nothing is awaited: whoever marks the job now comes behind.
        for one in pending:
            if one.movable and one.request.job_id in self._leaving:
                outcomes.setdefault(one.operation_id, JobLeavingError())
        fresh = [one for one in pending if one.operation_id not in outcomes]
        written = await self._dual_write.take([(one.operation, one.request) for one in fresh])
        lost_race: list[PendingRequest] = []
        for one, durability in zip(fresh, written, strict=True):
            if not durability.recorded and not durability.published:
                outcomes[one.operation_id] = _not_durable()
            elif one.keyed and durability.recorded and not durability.first:
                lost_race.append(one)
            else:
                outcomes[one.operation_id] = one.accepted()
                self._metrics.accepted(one.request.operation_type)
        outcomes |= await self._answer_lost_races(lost_race)
        return [outcomes[one.operation_id] for one in pending]

    async def check(self, pending: PendingRequest) -> OperationRecord | None:
        """Return the operation that has a request's key already, if any; nothing is written.

        Raises the `ModelyardError` with which `accept` would answer, and `StoreUnavailableError`.
        """
        if pending.keyed:
            existing = await self._store.operation_queries.get(pending.operation_id)
            if existing is not None:
                outcome = pending.repeated(existing)
                if isinstance(outcome, ModelyardError):
                    raise outcome
                return existing
        refusal = _not_in_catalog(pending, *await self._missing([pending.request]))
        if refusal is not None:
            raise refusal
        if pending.named_input in await self._gone_inputs([pending]):
            raise _input_gone(pending)
        return None

    async def _answer_without_write(self, pending: Sequence[PendingRequest]) -> dict[str, Outcome]:
        """Answer requests that repeat a key, or name a model or dataset the catalog lacks.

        If MongoDB does not answer, the dispatcher checks both: it gets every message.
        """
        if not any(one.keyed or one.request.input_id for one in pending) and self._catalog.knows(
            one.request for one in pending
        ):
            return {}
        try:
            return await self._availability.ask(lambda: self._look_up(pending), within_s=LOOKUP_S)
        except StoreUnavailableError:
            return {}

    async def _look_up(self, pending: Sequence[PendingRequest]) -> dict[str, Outcome]:
        known, missing, gone = await asyncio.gather(
            self._existing([one for one in pending if one.keyed]),
            self._missing([one.request for one in pending]),
            self._gone_inputs(pending),
        )
        outcomes: dict[str, Outcome] = {}
        for one in pending:
            existing = known.get(one.operation_id)
            if existing is not None:
                outcomes[one.operation_id] = one.repeated(existing)
            elif (refusal := _not_in_catalog(one, *missing)) is not None:
                outcomes[one.operation_id] = refusal
            elif one.named_input in gone:
                outcomes[one.operation_id] = _input_gone(one)
        return outcomes

    async def _missing(self, requests: Sequence[JobRequest]) -> tuple[set[str], set[str]]:
        """Return the models and the datasets that are named and not in the catalog."""
        return await asyncio.gather(
            self._catalog.models.missing({r.model for r in requests if r.model}),
            self._catalog.datasets.missing({r.dataset for r in requests if r.dataset}),
        )

    async def _gone_inputs(self, pending: Sequence[PendingRequest]) -> set[_Input]:
        """Keep the uploaded inputs that are named; return those that are not there."""
        named: dict[str, set[str]] = {}
        for tenant, input_id in filter(None, (one.named_input for one in pending)):
            named.setdefault(tenant, set()).add(input_id)
        gone = await asyncio.gather(
            *(self._store.inputs.keep(ids, tenant=tenant) for tenant, ids in named.items())
        )
        return {(tenant, one) for tenant, ids in zip(named, gone, strict=True) for one in ids}

    async def _answer_lost_races(self, lost_race: Sequence[PendingRequest]) -> dict[str, Outcome]:
        """Answer requests whose key another request used between the lookup and the write."""
        if not lost_race:
            return {}
        try:
            existing = await self._availability.ask(
                lambda: self._existing(lost_race), within_s=LOOKUP_S
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
        """Return the operations that exist already, so that a client may be told of them.

        One that has no position may never have been published: its gateway may have died, or may be
        about to say so. It is marked before the client hears of it and sends what comes after it.
        """
        if not pending:
            return {}
        found = await self._store.operation_queries.get_many([one.operation_id for one in pending])
        unbrought = [key for key, one in found.items() if one.line is None]
        if unbrought:
            await self._store.operations.mark_unpublished(unbrought)
        return found


def _not_in_catalog(
    one: PendingRequest, no_models: set[str], no_datasets: set[str]
) -> FaultyRequestError | None:
    if one.request.model in no_models:
        return _unknown(one, "model", ErrorCode.UNKNOWN_MODEL)
    if one.request.dataset in no_datasets:
        return _unknown(one, "dataset", ErrorCode.UNKNOWN_DATASET)
    return None


def _unknown(one: PendingRequest, field: str, code: ErrorCode) -> FaultyRequestError:
    message = f"The catalog has no {field} of this name."
    return FaultyRequestError([Fault(pointer=f"{one.under}/{field}", message=message)], code)


def _input_gone(one: PendingRequest) -> FaultyRequestError:
    message = "There is no uploaded input of this id, or not any more."
    fault = Fault(pointer=f"{one.under}/input_id", message=message)
    return FaultyRequestError([fault], ErrorCode.INPUT_GONE)


def _not_durable() -> ModelyardError:
    return ModelyardError(
        ErrorCode.UNAVAILABLE,
        "Neither RabbitMQ nor MongoDB has confirmed the request, so it is unknown whether it was "
        "accepted. It is safe to try again with the same Idempotency-Key.",
    )
