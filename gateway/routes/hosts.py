"""`/v1/hosts`: the fleet."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway import openapi
from gateway.access.authentication import needs
from gateway.monitoring.operator_log import log_change
from gateway.routes.dependencies import (
    GatewayDependencies,
    NamedPageQuery,
    answer,
    deleted,
    page_answer,
    refuse_repeated,
)
from gateway.service import Gateway
from gateway.views import host_view
from modelyard.contract.access.scopes import Principal, Scope
from modelyard.contract.answers import HostList
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.ids import Id
from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.contract.states import Admission
from modelyard.contract.views import HostView
from modelyard.store.records import HostRecord

router = APIRouter(prefix="/v1/hosts", tags=["hosts"])

Admin = Annotated[Principal, needs(Scope.HOSTS_ADMIN)]


class DrainQuery(BaseModel):
    """How to drain a host."""

    model_config = ConfigDict(extra="forbid")

    move: bool = Field(
        default=False,
        description="Move live jobs to other hosts. Without it they stay until they end.",
    )
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description="Seconds from now after which the remaining work is ended. Without it the "
        "drain waits for the work to end.",
    )


@router.get(
    "",
    response_model=HostList,
    responses=openapi.LIST_ANSWERS,
    dependencies=[needs(Scope.HOSTS_READ), Depends(refuse_repeated)],
    summary="List hosts, by name",
)
async def list_hosts(
    gateway: GatewayDependencies, query: Annotated[NamedPageQuery, Query()]
) -> Response:
    """Return a page of the hosts that have ever been online."""
    page = await gateway.reading.ask_for_much(
        lambda: gateway.store.hosts.page(after=query.cursor, limit=query.limit)
    )
    content = HostList(hosts=tuple(map(host_view, page.items)), next=page.next)
    return page_answer(content, query, "/v1/hosts", content.next)


@router.get(
    "/{host_id}",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    dependencies=[needs(Scope.HOSTS_READ)],
    summary="Read a host",
)
async def read_host(host_id: Id, gateway: GatewayDependencies) -> Response:
    """Return one host and the reservations on it."""
    record = await gateway.reading.ask(lambda: gateway.store.hosts.get(host_id))
    return answer(host_view(_found(record, host_id), with_content=True))


@router.post(
    "/{host_id}/cordon",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    summary="Cordon a host",
)
async def cordon(host_id: Id, gateway: GatewayDependencies, admin: Admin) -> Response:
    """Stop placing jobs on the host; its present jobs continue. This also ends a drain.

    Repeating the call changes nothing.
    """
    return await _admit(host_id, Admission.CORDONED, gateway, admin)


@router.post(
    "/{host_id}/uncordon",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    summary="Uncordon a host",
)
async def uncordon(host_id: Id, gateway: GatewayDependencies, admin: Admin) -> Response:
    """Place jobs on the host again. This also ends a drain. Repeating the call changes nothing."""
    return await _admit(host_id, Admission.OPEN, gateway, admin)


@router.post(
    "/{host_id}/drain",
    response_model=HostView,
    responses=openapi.ONE_ANSWERS,
    dependencies=[Depends(refuse_repeated)],
    summary="Drain a host",
)
async def drain(
    host_id: Id, gateway: GatewayDependencies, admin: Admin, query: Annotated[DrainQuery, Query()]
) -> Response:
    """Stop placing jobs on the host; let its present jobs end, or move them to other hosts.

    The drain is complete when `drain.done` is true. The host gets no new jobs until it is
    uncordoned; cordoning it ends the drain as well. Another call replaces `move` and the deadline,
    which counts from that call.
    """
    record = await gateway.reading.ask(
        lambda: gateway.store.hosts.drain(host_id, move=query.move, deadline_s=query.deadline_s)
    )
    view = host_view(_found(record, host_id))
    log_change(admin, "host.drain", host_id=host_id, move=query.move, deadline_s=query.deadline_s)
    return answer(view)


@router.delete(
    "/{host_id}",
    status_code=204,
    responses=openapi.DELETE_ANSWERS,
    summary="Delete a host that is LOST",
)
async def delete_host(host_id: Id, gateway: GatewayDependencies, admin: Admin) -> Response:
    """Delete a host that is LOST, and that no job is on. If its worker comes back, it is new."""
    done = await gateway.reading.ask(lambda: gateway.store.deletions.host(host_id))
    deleted(done, f"host {host_id}")
    log_change(admin, "host.delete", host_id=host_id)
    return Response(status_code=204)


async def _admit(
    host_id: str, admission: Admission, gateway: Gateway, admin: Principal
) -> Response:
    record = await gateway.reading.ask(lambda: gateway.store.hosts.admit(host_id, admission))
    view = host_view(_found(record, host_id))
    action = "host.uncordon" if admission is Admission.OPEN else "host.cordon"
    log_change(admin, action, host_id=host_id)
    return answer(view)


def _found(record: HostRecord | None, host_id: str) -> HostRecord:
    if record is None:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"There is no host {host_id}.")
    return record
