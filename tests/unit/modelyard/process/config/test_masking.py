"""No password is shown, whatever its URL looks like."""

import pytest
from pydantic import SecretStr

from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.contract.access.masked_urls import masked_url
from modelyard.process.config.masking import masked_settings
from worker.settings import WorkerSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://worker:canary@mq:5672/v", "amqp://worker:***@mq:5672/v"),
        ("amqp://worker:c@nary/x?y#canary@mq/v", "amqp://worker:***@mq/v"),
        ("amqp://:canary@mq", "amqp://:***@mq"),
        ("amqp://worker@mq", "amqp://worker@mq"),
        ("amqp://mq:5672/%2f?heartbeat=5", "amqp://mq:5672/%2f?heartbeat=5"),
        (
            "mongodb://u:canary@a:1,b:2/x?replicaSet=rs0&tlsCertificateKeyFilePassword=canary&w=1",
            "mongodb://u:***@a:1,b:2/x?replicaSet=rs0&tlsCertificateKeyFilePassword=***&w=1",
        ),
        (
            "mongodb://h/x?authMechanismProperties=AWS_SESSION_TOKEN:canary",
            "mongodb://h/x?authMechanismProperties=***",
        ),
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("me:canary@gateway:8080/?x", "me:***@gateway:8080/?x"),
        ("http:/me:canary@gateway", "http:***@gateway"),
        ("http://[me:canary@gateway", "http://[me:***@gateway"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_secrets_are_masked_and_urls_that_are_no_secrets_too() -> None:
    settings = CommandLineSettings(
        url="https://me:canary@modelyard.example", api_key=SecretStr("my_canary")
    )
    assert masked_settings(settings) == {
        "url": "https://me:***@modelyard.example",
        "api_key": "***",
    }
    assert masked_settings(CommandLineSettings(api_key=None))["api_key"] is None
    text = "plain: text @ home"
    assert masked_settings(CommandLineSettings(url=text))["url"] == text


def test_every_other_value_is_shown_as_json() -> None:
    shown = masked_settings(WorkerSettings(host_id="h", worker_labels={"gpu": "a100"}))
    assert shown["worker_labels"] == {"gpu": "a100"}
    assert shown["worker_slots"] is None
    assert shown["worker_reach"] == "published"
