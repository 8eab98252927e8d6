"""The dispatcher's settings. The only place of the dispatcher that reads the environment."""

from typing import Annotated

from pydantic import Field

from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.settings import Expects, StoreSettings


class Settings(StoreSettings):
    """Each is read from the variable of the same name in upper case, after `MODELYARD_`."""

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
