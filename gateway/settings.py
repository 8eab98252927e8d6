"""The gateway's settings. The only place of the gateway that reads the environment."""

from pydantic import Field

from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.settings import StoreSettings


class Settings(StoreSettings):
    """Each is read from the variable of the same name in upper case, after `MODELYARD_`."""

    gateway_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The address to listen on; 0.0.0.0 is every one.",
    )
    gateway_port: int = Field(
        default=8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    max_request_bytes: int = Field(
        default=MAX_REQUEST_BYTES,
        ge=1 << 10,
        le=MAX_REQUEST_BYTES,
        description="Bytes of the largest body of one request.",
    )
    max_batch_bytes: int = Field(
        default=MAX_BATCH_BYTES,
        ge=1 << 10,
        le=MAX_BATCH_BYTES,
        description="Bytes of the largest body of a batch.",
    )
