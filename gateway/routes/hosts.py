"""`/v1/hosts`: the fleet."""

from fastapi import APIRouter, Response

from gateway import openapi
from gateway.routes.parts import Parts, answer
from gateway.service import Gateway
from gateway.views import host_view
from modelyard.contract.answers import HostList
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.contract.messages import HostView
from modelyard.contract.states import Admission
from modelyard.store.records import HostRecord

router = APIRouter(prefix="/v1/hosts", tags=["hosts"])


@router.get("", response_model=HostList, responses=openapi.READ_ANSWERS, summary="List hosts")
async def list_hosts(gateway: Parts) -> Response:
    """Return every host that ever came online, by name."""
    records = await gateway.reading.ask(gateway.store.hosts.all)
    return answer(HostList(hosts=tuple(host_view(record) for record in records)))


@router.get(
    "/{host_id}", response_model=HostView, responses=openapi.ONE_ANSWERS, summary="Read a host"
)
async def read_host(host_id: Id, gateway: Parts) -> Response:
    """Return one host and what is reserved on it."""
    record = await gateway.reading.ask(lambda: gateway.store.hosts.get(host_id))
    return answer(host_view(_found(record, host_id)))


@router.post(
    "/{host_id}/cordon",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    summary="Place nothing new on a host",
)
async def cordon(host_id: Id, gateway: Parts) -> Response:
    """Take no new placements on the host; what is there goes on. Doing it again changes nothing."""
    return await _admit(host_id, Admission.CORDONED, gateway)


@router.post(
    "/{host_id}/uncordon",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    summary="Place on a host again",
)
async def uncordon(host_id: Id, gateway: Parts) -> Response:
    """Take placements on the host again. Doing it again changes nothing."""
    return await _admit(host_id, Admission.OPEN, gateway)


async def _admit(host_id: str, admission: Admission, gateway: Gateway) -> Response:
    record = await gateway.reading.ask(lambda: gateway.store.hosts.admit(host_id, admission))
    return answer(host_view(_found(record, host_id)))


def _found(record: HostRecord | None, host_id: str) -> HostRecord:
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no host {host_id}.")
    return record
