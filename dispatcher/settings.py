"""The dispatcher's settings. The only place of the dispatcher that reads the environment."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import NoDecode

from dispatcher.senders import HOST_PLACEHOLDER
from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.contract.rabbitmq.permissions import GATEWAY_USER, WORKER_USER
from modelyard.process.settings import JSON, Expects, StoreSettings


def _names_the_host(template: str) -> str:
    if template.count(HOST_PLACEHOLDER) != 1:
        raise ValueError(f"a user name with {HOST_PLACEHOLDER} in it, once")
    return template


WorkerUser = Annotated[str, AfterValidator(_names_the_host)]
Users = Annotated[
    tuple[str, ...], NoDecode, JSON, Expects('a JSON list of user names, such as ["gateway"]')
]


class DispatcherSettings(StoreSettings):
    """Each is read from the variable of the same name in upper case, after `MODELYARD_`."""

    dispatcher_gateway_users: Users = Field(
        default=(GATEWAY_USER,),
        description="RabbitMQ's users of the gateways, as a JSON list: only their messages, and "
        "those of the dispatchers' own user, are taken for a gateway's.",
    )
    dispatcher_worker_user: WorkerUser = Field(
        default=WORKER_USER,
        description="RabbitMQ's user of the worker of a host, with {host_id} in it: reports on a "
        "host count only from this user, or from the dispatchers' own.",
    )
    dispatcher_default_timeout_s: float = Field(
        default=3_600.0,
        gt=0,
        le=MAX_TIMEOUT_S,
        description="Seconds an operation may run if its request does not say.",
    )
    dispatcher_sweep_interval_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds between two repairs of what was left open."
    )
    dispatcher_max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How often an operation is given to a host before it fails.",
    )
    dispatcher_orphan_grace_s: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        description="Seconds for which a container that the record knows nothing of is left alone; "
        "they begin anew with each dispatcher.",
    )
    dispatcher_orphan_dry_run: Annotated[bool, Expects("true or false")] = Field(
        default=False,
        description="true or false: only log containers that the record knows nothing of. Those "
        "that it has moved on from are removed all the same.",
    )
