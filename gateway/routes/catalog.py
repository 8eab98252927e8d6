"""`/v1/models` and `/v1/datasets`: the catalog."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from fastapi import APIRouter, Request, Response

from gateway import openapi
from gateway.access.authentication import needs
from gateway.monitoring.operator_log import log_change
from gateway.problems import FaultyRequestError
from gateway.reading import BoundedReads
from gateway.routes.dependencies import GatewayDependencies, answer
from gateway.submission.catalog_cache import NameCache
from gateway.submission.request_reader import RequestReader
from gateway.submission.requests import validated
from gateway.views import footprint_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import DatasetList, Fault, FootprintList, ModelList
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.store.catalog import CatalogCollection

router = APIRouter(prefix="/v1", tags=["catalog"])

Writer = Annotated[Principal, needs(Scope.CATALOG_WRITE)]

S = TypeVar("S", ModelSpec, DatasetSpec)


@router.get(
    "/models",
    response_model=ModelList,
    responses=openapi.READ_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="List models",
)
async def list_models(gateway: GatewayDependencies) -> Response:
    """Return the models of the catalog, by name."""
    return answer(ModelList(models=tuple(await gateway.reading.ask(gateway.store.models.all))))


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
    new = await gateway.reading.ask(lambda: gateway.store.models.put(spec))
    log_change(writer, "model.put", model=name, new=new, image=spec.image)
    return _stored(spec, f"/v1/models/{name}", new=new)


@router.get(
    "/models/{name}",
    response_model=ModelSpec,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="Read a model",
)
async def read_model(name: Id, gateway: GatewayDependencies) -> Response:
    """Return one model."""
    return await _read(gateway.reading, gateway.store.models, name)


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
    responses=openapi.ONE_ANSWERS,
    summary="Delete a model",
)
async def delete_model(name: Id, gateway: GatewayDependencies, writer: Writer) -> Response:
    """Delete a model. Jobs that have a container keep using it."""
    await _delete(gateway.reading, gateway.store.models, gateway.catalog.models, name)
    log_change(writer, "model.delete", model=name)
    return Response(status_code=204)


@router.get(
    "/datasets",
    response_model=DatasetList,
    responses=openapi.READ_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="List datasets",
)
async def list_datasets(gateway: GatewayDependencies) -> Response:
    """Return the datasets of the catalog, by name."""
    entries = await gateway.reading.ask(gateway.store.datasets.all)
    return answer(DatasetList(datasets=tuple(entries)))


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
    new = await gateway.reading.ask(lambda: gateway.store.datasets.put(spec))
    log_change(writer, "dataset.put", dataset=name, new=new)
    return _stored(spec, f"/v1/datasets/{name}", new=new)


@router.get(
    "/datasets/{name}",
    response_model=DatasetSpec,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.CATALOG_READ)],
    summary="Read a dataset",
)
async def read_dataset(name: Id, gateway: GatewayDependencies) -> Response:
    """Return one dataset."""
    return await _read(gateway.reading, gateway.store.datasets, name)


@router.delete(
    "/datasets/{name}",
    status_code=204,
    responses=openapi.ONE_ANSWERS,
    summary="Delete a dataset",
)
async def delete_dataset(name: Id, gateway: GatewayDependencies, writer: Writer) -> Response:
    """Delete a dataset. Jobs that have a container keep using it."""
    await _delete(gateway.reading, gateway.store.datasets, gateway.catalog.datasets, name)
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


def _stored(spec: ModelSpec | DatasetSpec, path: str, *, new: bool) -> Response:
    return answer(spec, 201 if new else 200, {"Location": path} if new else None)


async def _read(reading: BoundedReads, collection: CatalogCollection[S], name: str) -> Response:
    found = await reading.ask(lambda: collection.get(name))
    if found is None:
        raise _no_such(name)
    return answer(found)


async def _delete(
    reading: BoundedReads, collection: CatalogCollection[S], known: NameCache, name: str
) -> None:
    known.forget(name)
    if not await reading.ask(lambda: collection.delete(name)):
        raise _no_such(name)
    known.forget(name)


def _no_such(name: str) -> ModelyardError:
    return ModelyardError(ErrorCode.NOT_FOUND, f"The catalog has no entry {name}.")
