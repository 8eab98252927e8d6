"""The client of the HTTP API for asyncio; `modelyard.client.sync` is the synchronous one.

The two classes have the same methods, which a test compares. Both send the calls that
`modelyard.client.endpoints` describes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx2

from modelyard.client import endpoints
from modelyard.client.credentials import authorization
from modelyard.client.endpoints import (
    LONGEST_POLL_S,
    Content,
    InferenceOptions,
    NamedList,
    Request,
    RequestOptions,
    Stored,
    id_of,
    succeeded,
)
from modelyard.client.retry import (
    ATTEMPTS,
    Call,
    CallAttempts,
    Outage,
    ServiceUnavailableError,
)
from modelyard.contract.access.api_keys import ApiKeyView, CreatedApiKey
from modelyard.contract.access.scopes import Role, Scope
from modelyard.contract.answers import (
    Accepted,
    BatchItem,
    DeadLetterPage,
    DeadLetterSummary,
    DeadLetterView,
    InputView,
    JobPage,
    OperationPage,
)
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.views import (
    DryRun,
    Explanation,
    FootprintView,
    HostView,
    JobView,
    OperationView,
)

T = TypeVar("T")

Operation = str | Accepted | OperationView


class AsyncModelyard:
    """A connection to a gateway. Every method raises `ApiError` if the gateway refuses it."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        attempts: int = ATTEMPTS,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds one attempt; a call is sent at most `attempts` times.

        Without `api_key` the client sends the key in `MODELYARD_API_KEY`; with an empty one it
        sends none. Raises `ValueError` if `url` is not an HTTP URL, or if the key can't be sent.
        """
        self._http = httpx2.AsyncClient(
            base_url=endpoints.checked_url(url),
            headers=authorization(url, api_key),
            transport=transport,
        )
        self._timeout_s = timeout_s
        self._attempts = attempts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- submitting ---

    async def submit(self, request: Request, *, idempotency_key: str | None = None) -> Accepted:
        """Submit a request; returns once the gateway has stored it durably, before it runs."""
        return await self._send(endpoints.submit(request, idempotency_key))

    async def dry_run(self, request: Request, *, idempotency_key: str | None = None) -> DryRun:
        """Return what would become of a request now; nothing is made."""
        return await self._send(endpoints.dry_run(request, idempotency_key))

    async def submit_batch(
        self, requests: Sequence[Request], *, idempotency_key: str | None = None
    ) -> tuple[BatchItem, ...]:
        """Submit up to 1,000 requests; returns an answer for each, in order."""
        return await self._send(endpoints.submit_batch(requests, idempotency_key))

    async def create(
        self,
        job_id: str,
        model: str,
        dataset: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> Accepted:
        """Place the job on a host and create its container."""
        given = {"model": model, "dataset": dataset}
        return await self._send(endpoints.ask(Verb.DEPLOY_CREATE, job_id, options, **given))

    async def load(self, job_id: str, **options: Unpack[RequestOptions]) -> Accepted:
        """Bring the job's model into memory."""
        return await self._send(endpoints.ask(Verb.DEPLOY_LOAD, job_id, options))

    async def infer(
        self,
        job_id: str,
        input: JsonValue = None,  # noqa: A002 - the name in the API
        **options: Unpack[RequestOptions],
    ) -> Accepted:
        """Send an input to the job's model; its answer is the operation's result."""
        return await self._send(endpoints.ask(Verb.INFER, job_id, options, input=input))

    async def infer_model(
        self,
        model: str,
        input: JsonValue = None,  # noqa: A002 - the name in the API
        *,
        dataset: str | None = None,
        **options: Unpack[InferenceOptions],
    ) -> Accepted:
        """Send an input to whichever job of a model is best placed; the answer names the job.

        With `dataset` only jobs that were created with it are asked. Raises `ApiError` with
        `no_serving_job` if there is none that could take it now.
        """
        return await self._send(endpoints.infer_model(model, dataset, options, input))

    async def unload(self, job_id: str, **options: Unpack[RequestOptions]) -> Accepted:
        """Take the job's model out of memory."""
        return await self._send(endpoints.ask(Verb.DEPLOY_UNLOAD, job_id, options))

    async def terminate(self, job_id: str, **options: Unpack[RequestOptions]) -> Accepted:
        """Remove the job's container."""
        return await self._send(endpoints.ask(Verb.TERMINATE, job_id, options))

    async def temp(
        self,
        job_id: str,
        model: str,
        dataset: str | None = None,
        input: JsonValue = None,  # noqa: A002 - the name in the API
        **options: Unpack[RequestOptions],
    ) -> Accepted:
        """Run the model once on the dataset or the input, and remove its container."""
        given = {"model": model, "dataset": dataset, "input": input}
        return await self._send(endpoints.ask(Verb.TEMP, job_id, options, **given))

    # --- operations ---

    async def operation(self, operation: Operation, *, wait_s: float = 0.0) -> OperationView:
        """Read an operation, after waiting for its end for up to `wait_s` seconds (60)."""
        return await self._send(endpoints.operation(id_of(operation), wait_s))

    async def explain(self, operation: Operation) -> Explanation:
        """Read why an operation has not started."""
        return await self._send(endpoints.explain(id_of(operation)))

    async def wait(self, operation: Operation, timeout_s: float | None = None) -> OperationView:
        """Return the operation once it has succeeded.

        Raises `OperationFailed` if it ended otherwise and `TimeoutError` if it has not ended
        within `timeout_s` seconds; None waits for ever. It outlives the restart of a gateway: only
        after two minutes without an answer it raises `ServiceUnavailableError`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        outage = Outage()
        while True:
            began = time.monotonic()
            left = LONGEST_POLL_S if deadline is None else max(deadline - began, 0.0)
            try:
                view = await self.operation(operation, wait_s=min(left, LONGEST_POLL_S))
            except ServiceUnavailableError as error:
                await asyncio.sleep(outage.pause_after(error, deadline))
                continue
            outage.ends()
            if view.state.terminal:
                return succeeded(view)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{view.operation_id} is still {view.state}")
            # A gateway that stops answers early; the next gateway needs a moment to start.
            await asyncio.sleep(endpoints.pause_after_poll(time.monotonic() - began, left))

    async def cancel(self, operation: Operation, *, wait_s: float = 0.0) -> OperationView:
        """Ask to cancel an operation; returns it CANCELLED, or still open.

        Waits for its end for up to `wait_s` seconds (60). Raises `ApiError` with `already_ended`
        if it ended otherwise.
        """
        return await self._send(endpoints.cancel(id_of(operation), wait_s))

    async def retry(self, operation: Operation, *, idempotency_key: str | None = None) -> Accepted:
        """Submit the request of an operation that ended without success again, as a new one.

        Raises `ApiError` with `not_retryable` if it is open or has succeeded.
        """
        return await self._send(endpoints.retry(id_of(operation), idempotency_key))

    async def upload(
        self, content: bytes, content_type: str = "application/octet-stream"
    ) -> InputView:
        """Upload an input of up to 64 MiB, of any type.

        `infer`, `infer_model` and `temp` take its `input_id` in place of an input. One that no
        request names within a day is removed.
        """
        return await self._send(endpoints.upload(content, content_type))

    async def result(self, operation: Operation) -> JsonValue:
        """Read the result of an operation that has ended.

        Raises `NotJsonError` if it is something else than JSON; see `content`.
        """
        return await self._send(endpoints.result(id_of(operation)))

    async def content(self, operation: Operation) -> Content:
        """Read the result of an operation that has ended, whatever it is, with its media type."""
        return await self._send(endpoints.content(id_of(operation)))

    async def operations(self, **filters: Unpack[endpoints.OperationFilters]) -> OperationPage:
        """List operations, newest first; `cursor=page.next` gives the next page."""
        return await self._send(endpoints.operations(filters))

    # --- jobs and hosts ---

    async def job(self, job_id: str) -> JobView:
        """Read a job."""
        return await self._send(endpoints.job(job_id))

    async def jobs(self, **filters: Unpack[endpoints.JobFilters]) -> JobPage:
        """List jobs, newest first; `cursor=page.next` gives the next page."""
        return await self._send(endpoints.jobs(filters))

    async def host(self, host_id: str) -> HostView:
        """Read a host."""
        return await self._send(endpoints.host(host_id))

    async def cordon(self, host_id: str) -> HostView:
        """Place no new jobs on a host; the jobs on it go on."""
        return await self._send(endpoints.admit(host_id, "cordon"))

    async def uncordon(self, host_id: str) -> HostView:
        """Allow new jobs on a host again."""
        return await self._send(endpoints.admit(host_id, "uncordon"))

    async def drain(
        self, host_id: str, *, move: bool = False, deadline_s: float | None = None
    ) -> HostView:
        """Empty a host: it gets no new jobs, and its operations finish.

        With `move` its live jobs are moved to other hosts. After `deadline_s` seconds (up to 7
        days) the operations and jobs that are left are ended. `cordon` and `uncordon` end a drain.
        """
        return await self._send(endpoints.drain(host_id, move=move, deadline_s=deadline_s))

    async def hosts(self) -> tuple[HostView, ...]:
        """List the hosts."""
        return tuple([one async for page in self._pages(endpoints.hosts) for one in page.hosts])

    # --- dead letters ---

    async def dead_letters(self, **filters: Unpack[endpoints.DeadLetterFilters]) -> DeadLetterPage:
        """List dead letters, newest first; `cursor=page.next` gives the next page."""
        return await self._send(endpoints.dead_letters(filters))

    async def dead_letter(self, dead_letter_id: str) -> DeadLetterView:
        """Read a dead letter with its headers and its payload."""
        return await self._send(endpoints.dead_letter(dead_letter_id))

    async def replay_dead_letter(self, dead_letter_id: str) -> DeadLetterSummary:
        """Publish a dead letter again; its requests become new operations.

        Each call is another replay, so the client does not send it again by itself. After a
        `ServiceUnavailableError` the dead letter may have been published.
        """
        return await self._send(endpoints.replay_dead_letter(dead_letter_id))

    async def delete_dead_letter(self, dead_letter_id: str) -> None:
        """Delete the record of a dead letter."""
        await self._send(endpoints.delete_dead_letter(dead_letter_id))

    # --- API keys ---

    async def create_key(
        self,
        name: str,
        *,
        role: Role | None = None,
        scopes: Sequence[Scope] | None = None,
        expires_in_s: float | None = None,
    ) -> CreatedApiKey:
        """Create an API key with a role or scopes; its secret is in this answer only.

        Each call creates another key, so the client does not send it again by itself. After a
        `ServiceUnavailableError` a key may have been created.
        """
        call = endpoints.create_key(name, role=role, scopes=scopes, expires_in_s=expires_in_s)
        return await self._send(call)

    async def keys(self) -> tuple[ApiKeyView, ...]:
        """List all API keys, the oldest first, without their secrets."""
        return await self._send(endpoints.keys())

    async def revoke_key(self, key_id: str) -> ApiKeyView:
        """Revoke an API key for ever."""
        return await self._send(endpoints.revoke_key(key_id))

    # --- catalog ---

    async def delete_job(self, job_id: str) -> None:
        """Delete a job that is TERMINATED, FAILED or LOST; its operations stay.

        Raises `ApiError` with `still_in_use`.
        """
        await self._send(endpoints.delete_entry("jobs", job_id))

    async def delete_operation(self, operation: Operation) -> None:
        """Delete an operation that has ended, with its result; raises as `delete_job` does."""
        await self._send(endpoints.delete_entry("operations", id_of(operation)))

    async def delete_host(self, host_id: str) -> None:
        """Delete a host that is LOST; raises as `delete_job` does."""
        await self._send(endpoints.delete_entry("hosts", host_id))

    async def models(self) -> tuple[ModelSpec, ...]:
        """List the models of the catalog."""
        return tuple([one async for page in self._pages(endpoints.models) for one in page.models])

    async def model(self, name: str) -> ModelSpec:
        """Read a model."""
        return await self._send(endpoints.entry("models", ModelSpec, name))

    async def stored_model(self, name: str) -> Stored[ModelSpec]:
        """Read a model with its `etag`, for `put_model` and `delete_model`."""
        return await self._send(endpoints.stored_entry("models", ModelSpec, name))

    async def footprints(self, model: str) -> tuple[FootprintView, ...]:
        """Read what a model was measured to take in memory, by image and kind of device."""
        return await self._send(endpoints.footprints(model))

    async def put_model(
        self, spec: ModelSpec | Mapping[str, JsonValue], *, if_match: str | None = None
    ) -> ModelSpec:
        """Store a model under its name; with `if_match` only in place of that version.

        Raises `ApiError` with `precondition_failed` if the entry has changed since, or is gone. A
        call with `if_match` is not sent again by itself: after a `ServiceUnavailableError` it may
        have been carried out.
        """
        return await self._send(endpoints.put_entry("models", ModelSpec, spec, if_match))

    async def delete_model(self, name: str, *, if_match: str | None = None) -> None:
        """Delete a model; existing jobs keep their copy of it. `if_match` is as for a put."""
        await self._send(endpoints.delete_entry("models", name, if_match))

    async def datasets(self) -> tuple[DatasetSpec, ...]:
        """List the datasets of the catalog."""
        return tuple(
            [one async for page in self._pages(endpoints.datasets) for one in page.datasets]
        )

    async def dataset(self, name: str) -> DatasetSpec:
        """Read a dataset."""
        return await self._send(endpoints.entry("datasets", DatasetSpec, name))

    async def stored_dataset(self, name: str) -> Stored[DatasetSpec]:
        """Read a dataset with its `etag`, for `put_dataset` and `delete_dataset`."""
        return await self._send(endpoints.stored_entry("datasets", DatasetSpec, name))

    async def put_dataset(
        self, spec: DatasetSpec | Mapping[str, JsonValue], *, if_match: str | None = None
    ) -> DatasetSpec:
        """Store a dataset under its name; with `if_match` only in place of that version.

        See `put_model`.
        """
        return await self._send(endpoints.put_entry("datasets", DatasetSpec, spec, if_match))

    async def delete_dataset(self, name: str, *, if_match: str | None = None) -> None:
        """Delete a dataset; existing jobs keep their copy of it. `if_match` is as for a put."""
        await self._send(endpoints.delete_entry("datasets", name, if_match))

    async def _pages(
        self, call: Callable[[str | None], Call[NamedList]]
    ) -> AsyncIterator[NamedList]:
        """Yield the pages of a list that is read whole."""
        cursor: str | None = None
        while True:
            page = await self._send(call(cursor))
            yield page
            cursor = page.next
            if cursor is None:
                return

    async def _send(self, call: Call[T]) -> T:
        attempts = CallAttempts(call, self._attempts)
        while True:
            try:
                response = await self._http.request(**call.arguments(self._timeout_s))
            except httpx2.RequestError as error:
                pause_s: float | None = attempts.after_error(error)
            else:
                pause_s = attempts.after(response)
                if pause_s is None:
                    return attempts.answer(response)
            await asyncio.sleep(pause_s or 0.0)
