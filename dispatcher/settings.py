"""The dispatcher's settings, read from the environment here and nowhere else."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from modelyard.contract.messages import MAX_TIMEOUT_S
from modelyard.telemetry import LogFormat, LogLevel


class Settings(BaseSettings):
    """Environment variables of the dispatcher; each has the prefix `MODELYARD_`."""

    model_config = SettingsConfigDict(env_prefix="MODELYARD_", frozen=True)

    amqp_url: str = Field(
        default="amqp://guest:guest@127.0.0.1:5672", description="AMQP URI of RabbitMQ."
    )
    mongo_url: str = Field(
        default="mongodb://127.0.0.1:27017/modelyard",
        description="MongoDB URI of a replica set; the path names the database.",
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
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error.")
    log_format: LogFormat = Field(default="auto", description="auto, json or text.")
