"""The dispatcher's settings. No other module of the dispatcher reads the environment."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import NoDecode

from dispatcher.senders import HOST_PLACEHOLDER
from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.contract.rabbitmq.permissions import GATEWAY_USER, WORKER_USER
from modelyard.process.settings import JSON, Expects, HealthPath, MetricsAddress, StoreSettings
from modelyard.scheduling.placement import PlacementPolicy


def _names_the_host(template: str) -> str:
    if template.count(HOST_PLACEHOLDER) != 1:
        raise ValueError(f"a user name that contains {HOST_PLACEHOLDER} exactly once")
    return template


WorkerUser = Annotated[str, AfterValidator(_names_the_host)]
Users = Annotated[
    tuple[str, ...], NoDecode, JSON, Expects('a JSON list of user names, such as ["gateway"]')
]


KeptDays = Annotated[int, Field(ge=0, le=36_500), Expects("0 to 36500 days")]


class DispatcherSettings(StoreSettings):
    """Each setting is read from the variable `MODELYARD_` plus its name in upper case."""

    health_file: HealthPath
    dispatcher_gateway_users: Users = Field(
        default=(GATEWAY_USER,),
        description="The gateways' RabbitMQ users, as a JSON list. A message is trusted as a "
        "gateway's only if one of these users, or the dispatchers' own, sent it.",
    )
    dispatcher_worker_user: WorkerUser = Field(
        default=WORKER_USER,
        description="The RabbitMQ user of a host's worker, with {host_id} in it. A report on a "
        "host is accepted only from this user, or from the dispatchers' own.",
    )
    dispatcher_default_timeout_s: float = Field(
        default=3_600.0,
        gt=0,
        le=MAX_TIMEOUT_S,
        description="Seconds that an operation may run if its request has no `timeout_s`.",
    )
    dispatcher_sweep_interval_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds between two rounds of the sweep's repairs."
    )
    dispatcher_swap_wait_s: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="Seconds that an operation waits for a model's place until also models that "
        "are in use are unloaded for it, if they are loaded on demand.",
    )
    dispatcher_placement: PlacementPolicy = Field(
        default=PlacementPolicy.BINPACK,
        description="binpack or spread: which of the hosts that would start a job equally soon "
        "gets it, the one that is used most (so the others keep room for large models) or least.",
    )
    dispatcher_max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How many attempts an operation gets before it fails.",
    )
    dispatcher_orphan_grace_s: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        description="Seconds before an orphan (a container that is not in the record) is removed. "
        "The count starts again whenever another dispatcher leads.",
    )
    dispatcher_orphan_dry_run: Annotated[bool, Expects("true or false")] = Field(
        default=False,
        description="true or false: whether orphans are only logged, not removed. Containers of "
        "an earlier generation of a job are removed in any case.",
    )
    dispatcher_keep_operations_days: KeptDays = Field(
        default=30,
        description="Days after their end for which operations are kept, with their jobs if these "
        "have no container; 0 keeps them for ever. As long, an idempotency key stands for its "
        "operation.",
    )
    dispatcher_keep_results_days: KeptDays = Field(
        default=30,
        description="Days after the end of their operations for which results are kept, and no "
        "longer than the operations; 0 keeps them as long as these.",
    )
    dispatcher_keep_events_days: KeptDays = Field(
        default=30,
        description="Days for which events are kept, and no longer than their operations; 0 keeps "
        "them as long as these.",
    )
    dispatcher_keep_dead_letters_days: KeptDays = Field(
        default=30, description="Days for which dead letters are kept; 0 keeps them for ever."
    )
    dispatcher_metrics_address: MetricsAddress = "127.0.0.1:9182"
