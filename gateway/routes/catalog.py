"""`/v1/models` and `/v1/datasets`: the catalog."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response

from gateway import openapi
from gateway.access.authentication import needs
from gateway.monitoring.operator_log import log_change
from gateway.problems import FaultyRequestError
from gateway.reading import BoundedReads
from gateway.routes.dependencies import (
    GatewayDependencies,
    NamedPageQuery,
    answer,
    page_answer,
    refuse_repeated,
)
from gateway.routes.preconditions import Preconditions, etag_of
from gateway.submission.request_reader import RequestReader
from gateway.submission.requests import validated
from gateway.views import footprint_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import DatasetList, Fault, FootprintList, ModelList
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.store.catalog import CatalogCollection, StoredEntry
from modelyard.store.paging import NamedPage

WRITES_TRIED = 3
"""How often a conditional write is tried while other requests change the entry."""

router = APIRouter(prefix="/v1", tags=["catalog"])

Writer = Annotated[Principal, needs(Scope.CATALOG_WRITE)]

S = TypeVar("S", ModelSpec, DatasetSpec)


@router.get(
    "/models",
    response_model=ModelList,
    responses=openapi.LIST_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ), Depends(refuse_repeated)],
    summary="List models, by name",
)
async def list_models(
    gateway: GatewayDependencies, query: Annotated[NamedPageQuery, Query()]
) -> Response:
    """Return a page of the models of the catalog."""
    page = await _page(gateway.reading, gateway.store.models, query)
    content = ModelList(models=page.items, next=page.next)
    return page_answer(content, query, "/v1/models", content.next)


@router.put(
    "/models/{name}",
    response_model=ModelSpec,
    responses=openapi.PUT_ANSWERS,
    openapi_extra=openapi.MODEL_BODY,
    summary="Store a model",
)
async def put_model(
    name: Id, request: Request, gateway: GatewayDependencies, writer: Writer
) -> Response:
    """Store a model. Jobs that have a container keep the version with which it was created."""
    spec = await _spec(ModelSpec, name, request, gateway.reader)
    new = await _put(gateway.reading, gateway.store.models, spec, request)
    log_change(writer, "model.put", model=name, new=new, image=spec.image)
    return _stored(spec, request.url.path, new=new)


@router.get(
    "/models/{name}",
    response_model=ModelSpec,
    responses=openapi.ENTRY_ANSWERS,
    openapi_extra=openapi.CONDITIONAL,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="Read a model",
)
async def read_model(name: Id, request: Request, gateway: GatewayDependencies) -> Response:
    """Return one model."""
    return await _read(gateway.reading, gateway.store.models, name, request)


@router.get(
    "/models/{name}/footprints",
    response_model=FootprintList,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="Read what a model takes",
)
async def read_footprints(name: Id, gateway: GatewayDependencies) -> Response:
    """Return what the model was measured to take while it was in memory; also of former images."""
    ask, store = gateway.reading.ask, gateway.store
    found = await ask(lambda: store.footprints.of_model(name))
    if not found and await ask(lambda: store.models.get(name)) is None:
        raise _no_such(name)
    return answer(FootprintList(footprints=tuple(footprint_view(one) for one in found)))


@router.delete(
    "/models/{name}",
    status_code=204,
    responses=openapi.DELETE_ENTRY_ANSWERS,
    openapi_extra=openapi.CONDITIONAL,
    summary="Delete a model",
)
async def delete_model(
    name: Id, request: Request, gateway: GatewayDependencies, writer: Writer
) -> Response:
    """Delete a model. Jobs that have a container keep using it."""
    gateway.catalog.models.forget(name)
    await _delete(gateway.reading, gateway.store.models, name, request)
    gateway.catalog.models.forget(name)
    log_change(writer, "model.delete", model=name)
    return Response(status_code=204)


@router.get(
    "/datasets",
    response_model=DatasetList,
    responses=openapi.LIST_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ), Depends(refuse_repeated)],
    summary="List datasets, by name",
)
async def list_datasets(
    gateway: GatewayDependencies, query: Annotated[NamedPageQuery, Query()]
) -> Response:
    """Return a page of the datasets of the catalog."""
    page = await _page(gateway.reading, gateway.store.datasets, query)
    content = DatasetList(datasets=page.items, next=page.next)
    return page_answer(content, query, "/v1/datasets", content.next)


@router.put(
    "/datasets/{name}",
    response_model=DatasetSpec,
    responses=openapi.PUT_ANSWERS,
    openapi_extra=openapi.DATASET_BODY,
    summary="Store a dataset",
)
async def put_dataset(
    name: Id, request: Request, gateway: GatewayDependencies, writer: Writer
) -> Response:
    """Store a dataset. Jobs that have a container keep the version with which it was created."""
    spec = await _spec(DatasetSpec, name, request, gateway.reader)
    new = await _put(gateway.reading, gateway.store.datasets, spec, request)
    log_change(writer, "dataset.put", dataset=name, new=new)
    return _stored(spec, request.url.path, new=new)


@router.get(
    "/datasets/{name}",
    response_model=DatasetSpec,
    responses=openapi.ENTRY_ANSWERS,
    openapi_extra=openapi.CONDITIONAL,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="Read a dataset",
)
async def read_dataset(name: Id, request: Request, gateway: GatewayDependencies) -> Response:
    """Return one dataset."""
    return await _read(gateway.reading, gateway.store.datasets, name, request)


@router.delete(
    "/datasets/{name}",
    status_code=204,
    responses=openapi.DELETE_ENTRY_ANSWERS,
    openapi_extra=openapi.CONDITIONAL,
    summary="Delete a dataset",
)
async def delete_dataset(
    name: Id, request: Request, gateway: GatewayDependencies, writer: Writer
) -> Response:
    """Delete a dataset. Jobs that have a container keep using it."""
    gateway.catalog.datasets.forget(name)
    await _delete(gateway.reading, gateway.store.datasets, name, request)
    gateway.catalog.datasets.forget(name)
    log_change(writer, "dataset.delete", dataset=name)
    return Response(status_code=204)


async def _spec(kind: type[S], name: str, request: Request, reader: RequestReader) -> S:
    """Return the catalog entry in a body; it may lack the name, which is in the path."""
    value = await reader.entry(request)
    if isinstance(value, Mapping):
        value = {"name": name, **value}
    spec = validated(kind, value)
    if spec.name != name:
        message = "The name differs from the one in the path."
        raise FaultyRequestError([Fault(pointer="/name", message=message)])
    return spec


async def _page(
    reading: BoundedReads, collection: CatalogCollection[S], query: NamedPageQuery
) -> NamedPage[S]:
    return await reading.ask_for_much(
        lambda: collection.page(after=query.cursor, limit=query.limit)
    )


async def _put(
    reading: BoundedReads, collection: CatalogCollection[S], spec: S, request: Request
) -> bool:
    """Store an entry, if the request's preconditions hold; True if it is new."""
    preconditions = Preconditions.of(request)
    if preconditions.any:
        return await _put_if(reading, collection, spec, preconditions)
    return await reading.ask(lambda: collection.put(spec))


def _stored(spec: ModelSpec | DatasetSpec, path: str, *, new: bool) -> Response:
    headers = {"ETag": etag_of(spec), "Content-Location": path}
    return answer(spec, 201 if new else 200, headers | ({"Location": path} if new else {}))


async def _put_if(
    reading: BoundedReads, collection: CatalogCollection[S], spec: S, preconditions: Preconditions
) -> bool:
    """Store an entry if the preconditions hold at the moment of the write; True if it is new."""
    for _ in range(WRITES_TRIED):
        seen = await _seen(reading, collection, spec.name, preconditions)
        if seen is None and await reading.ask(lambda: collection.create(spec)):
            return True
        if seen is not None and await reading.ask(partial(collection.replace, spec, seen)):
            return False
    raise _changing()


async def _read(
    reading: BoundedReads, collection: CatalogCollection[S], name: str, request: Request
) -> Response:
    preconditions = Preconditions.of(request)
    found = await reading.ask(lambda: collection.get(name))
    if found is None:
        raise _no_such(name)
    etag = etag_of(found)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    preconditions.check_match(etag)
    if preconditions.not_modified(etag):
        return Response(status_code=304, headers=headers)
    return answer(found, headers=headers)


async def _delete(
    reading: BoundedReads, collection: CatalogCollection[S], name: str, request: Request
) -> None:
    preconditions = Preconditions.of(request)
    if not preconditions.any:
        if not await reading.ask(lambda: collection.delete(name)):
            raise _no_such(name)
        return
    for _ in range(WRITES_TRIED):
        seen = await _seen(reading, collection, name, preconditions)
        if seen is None:
            raise _no_such(name)
        if await reading.ask(partial(collection.delete, name, seen)):
            return
    raise _changing()


async def _seen(
    reading: BoundedReads,
    collection: CatalogCollection[S],
    name: str,
    preconditions: Preconditions,
) -> StoredEntry[S] | None:
    """Return an entry for which the preconditions hold; raises `precondition_failed`."""
    seen = await reading.ask(lambda: collection.find(name))
    preconditions.check(etag_of(seen.spec) if seen else None)
    return seen


def _changing() -> ModelyardError:
    return ModelyardError(
        ErrorCode.PRECONDITION_FAILED, "Other requests changed the entry at the same time."
    )


def _no_such(name: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_FOUND, f"The catalog has no entry {name}.")
