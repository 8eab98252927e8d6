"""The dispatcher's settings. The only place of the dispatcher that reads the environment."""

from pydantic import Field

from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.settings import StoreSettings


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
        description="Seconds for which a container that nobody owns is left alone.",
    )
    dispatcher_orphan_dry_run: bool = Field(
        default=False, description="Only log containers which nobody owns; remove none."
    )
