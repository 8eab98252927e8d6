"""The gateway's settings. No other module of the gateway reads the environment."""

import ipaddress
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from gateway.http.connections import ConnectionLimits
from gateway.middleware.cross_site import WebRules, canonical_host
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.messages import MAX_BATCH_BYTES, MAX_REQUEST_BYTES
from modelyard.process.settings import JSON, Expects, MetricsAddress, StoreSettings


class AuthMethod(StrEnum):
    """How clients authenticate."""

    KEYS = "keys"
    """With API keys."""


NO_AUTH = "none"


def _methods(value: object) -> object:
    """Return the methods in a list with commas; `none` stands for the empty list."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",")]
    if names == [NO_AUTH]:
        return frozenset()
    if any(name not in AuthMethod.__members__.values() for name in names):
        raise PydanticCustomError("no_method", "none or keys")
    return frozenset(AuthMethod(name) for name in names)


def _host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not _is_host(name) for name in names):
        raise PydanticCustomError("no_host", "names")
    return names


def _is_host(name: str) -> bool:
    return WebRules(hosts=frozenset({canonical_host(name)})).answers_for(name, None) and (
        ":" not in name or name.startswith("[")
    )


AuthMethods = Annotated[
    frozenset[AuthMethod], NoDecode, BeforeValidator(_methods), Expects("none or keys")
]
HostNames = Annotated[
    tuple[str, ...],
    NoDecode,
    JSON,
    AfterValidator(_host_names),
    Expects('a JSON list of names without ports, such as ["modelyard.example"]'),
]
Origins = Annotated[
    tuple[
        Annotated[str, Field(pattern=r"^https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?$")],
        ...,
    ],
    NoDecode,
    JSON,
    Expects('a JSON list of origins in lower case, such as ["https://app.example"]'),
]


class GatewaySettings(StoreSettings):
    """Each setting is read from the variable `MODELYARD_` plus its name in upper case."""

    gateway_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The address to listen on; 0.0.0.0 is all addresses. Any address but loopback "
        "requires MODELYARD_AUTH=keys.",
    )
    gateway_port: int = Field(
        default=8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    gateway_share_port: bool = Field(
        default=False,
        description="Whether other gateways of this user may listen on the same address and port "
        "of this machine. Linux then spreads new connections over them.",
    )
    auth: AuthMethods = Field(
        default=NO_AUTH,
        validate_default=True,
        description="How clients authenticate: keys (API keys), or none. With none every client "
        "that reaches the gateway may do everything, so it is allowed only on a loopback address.",
    )
    gateway_allowed_hosts: HostNames = Field(
        default=(),
        description="Names by which clients reach the gateway, as a JSON list without ports. "
        "Always allowed: loopback, and the address at which a connection arrives.",
    )
    gateway_allowed_origins: Origins = Field(
        default=(),
        description="Origins whose web pages may use the gateway from a browser, as a JSON list "
        'such as ["https://app.example"].',
    )
    gateway_max_connections: int = Field(
        default=1_000,
        ge=10,
        le=100_000,
        description="Most connections that may be open. Beyond that, idle ones are closed; if "
        "none is idle, new ones are refused.",
    )
    gateway_header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds that a connection may take to send the header of a request.",
    )
    gateway_idle_timeout_s: int = Field(
        default=65,
        ge=1,
        le=3_600,
        description="Seconds that a connection may wait for its next request. It should be longer "
        "than a reverse proxy keeps idle connections.",
    )
    gateway_write_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Seconds that a client may pause while it reads an answer.",
    )
    max_request_bytes: int = Field(
        default=MAX_REQUEST_BYTES,
        ge=1 << 10,
        le=MAX_REQUEST_BYTES,
        description="Most bytes in the body of one request.",
    )
    max_batch_bytes: int = Field(
        default=MAX_BATCH_BYTES,
        ge=1 << 10,
        le=MAX_BATCH_BYTES,
        description="Most bytes in the body of a batch.",
    )
    max_input_bytes: int = Field(
        default=MAX_CONTENT_BYTES,
        ge=1 << 10,
        le=MAX_CONTENT_BYTES,
        description="Most bytes of an input that is uploaded.",
    )
    gateway_metrics_address: MetricsAddress = "127.0.0.1:9181"
    gateway_access_log: Annotated[bool, Expects("true or false")] = Field(
        default=True,
        description="true or false: whether each request has a line in the log.",
    )

    @field_serializer("auth")
    def _auth_as_given(self, methods: frozenset[AuthMethod]) -> str:
        return ",".join(sorted(methods)) or NO_AUTH

    @field_validator("auth")
    @classmethod
    def _require_keys_beyond_loopback(
        cls, methods: frozenset[AuthMethod], info: ValidationInfo
    ) -> frozenset[AuthMethod]:
        host = info.data.get("gateway_host")
        if methods or host is None or _is_loopback(host):
            return methods
        raise ValueError(
            "keys, because MODELYARD_GATEWAY_HOST is not a loopback address and every client that "
            "reaches the gateway could do everything. Set MODELYARD_AUTH=keys and create the first "
            "key with `modelyard keys bootstrap`, or listen on 127.0.0.1"
        )

    @property
    def web_rules(self) -> WebRules:
        """The names that the gateway answers for, and the web pages that may use it."""
        return WebRules(
            hosts=frozenset(canonical_host(name) for name in self.gateway_allowed_hosts),
            origins=frozenset(self.gateway_allowed_origins),
        )

    @property
    def connection_limits(self) -> ConnectionLimits:
        """How many connections may be open, and how long each may wait."""
        return ConnectionLimits(
            max_open=self.gateway_max_connections,
            header_s=self.gateway_header_timeout_s,
            idle_s=self.gateway_idle_timeout_s,
            write_s=self.gateway_write_timeout_s,
        )


def _is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address; false for a name but `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
