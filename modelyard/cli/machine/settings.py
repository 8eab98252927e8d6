"""The settings of the command line. No other module of it reads the environment."""

from typing import ClassVar

from pydantic import Field, SecretStr

from modelyard.process.settings import ConfiguredSettings, StoreSettings


class CommandLineSettings(ConfiguredSettings):
    """The gateway that `modelyard` calls."""

    url: str = Field(default="http://127.0.0.1:8080", description="The gateway's URL.")
    api_key: SecretStr | None = Field(
        default=None, description="The API key that the gateway asks for."
    )


class BootstrapSettings(StoreSettings):
    """The database for the first API key, from the configuration of any service that uses it."""

    foreign_keys: ClassVar[bool] = True
