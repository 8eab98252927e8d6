"""`modelyard-worker`: reads the settings, builds the clients, runs the service."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence

from pydantic import SecretStr, ValidationError

from modelyard import __version__
from modelyard.broker import Broker, TopologyMismatchError
from modelyard.telemetry import setup_logging
from worker.docker_runtime import DockerRuntime
from worker.hooks import ModelServer, http_client
from worker.runtime import EngineUnavailableError
from worker.service import Service
from worker.settings import WorkerSettings

_BAD_SETTING = 2
_CANNOT_START = 1
_SECOND_SIGNAL = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run the worker until SIGTERM or SIGINT; a second one exits at once."""
    _parser().parse_args(argv)
    try:
        settings = WorkerSettings()
    except ValueError as error:
        sys.exit(_complain(_BAD_SETTING, _bad_setting(error)))
    setup_logging(
        "worker", level=settings.log_level, log_format=settings.log_format, host_id=settings.host_id
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings))
    except (BaseExceptionGroup, EngineUnavailableError, TopologyMismatchError) as error:
        sentence = _cannot_start(error)
        if sentence is None:
            raise
        sys.exit(_complain(_CANNOT_START, sentence))


async def _run(settings: WorkerSettings) -> None:
    stop = asyncio.Event()
    _listen_for_signals(stop)
    broker = Broker(settings.amqp_url.get_secret_value(), name=f"worker {settings.host_id}")
    rules = settings.plan_rules()
    runtime = DockerRuntime(
        settings.docker_url, host_id=rules.host_id, network=rules.network, publish=rules.publish
    )
    try:
        async with http_client() as client:
            server = ModelServer(client)
            await Service(settings, broker=broker, runtime=runtime, server=server).run(stop)
    finally:
        await runtime.close()
        await broker.close()


def _listen_for_signals(stop: asyncio.Event) -> None:
    def on_signal() -> None:
        if stop.is_set():
            # Containers are left running either way; nothing here is worth waiting for.
            os._exit(_SECOND_SIGNAL)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - only where it exists
    except ImportError:
        return None
    return uvloop.new_event_loop


def _cannot_start(error: BaseException) -> str | None:
    """Return one sentence for what an operator can mend; None for a fault of ours."""
    if isinstance(error, BaseExceptionGroup):
        sentences = [_cannot_start(inner) for inner in error.exceptions]
        return next((it for it in sentences if it is not None), None)
    if isinstance(error, TopologyMismatchError):
        return f"RabbitMQ has a queue or an exchange that differs from ours: {error}"
    if isinstance(error, EngineUnavailableError):
        return f"The Docker Engine is not usable: {error.message}"
    return None


def _bad_setting(error: ValueError) -> str:
    """Say which setting is wrong, without its value: it may be a secret."""
    if not isinstance(error, ValidationError):
        return f"A setting is not what it should be: {error}"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "the settings"
    return f"{_variable(name)}: {first['msg']}"


def _variable(field: str) -> str:
    known = WorkerSettings.model_fields.get(field)
    if known is None:
        return field
    return str(known.validation_alias or f"MODELYARD_{field.upper()}")


def _complain(code: int, sentence: str) -> int:
    print(f"modelyard-worker: {sentence}", file=sys.stderr)  # noqa: T201 - a program's last word
    return code


def _parser() -> argparse.ArgumentParser:
    lines = ["environment variables:"]
    for name, field in WorkerSettings.model_fields.items():
        default = "" if field.default_factory else f" (default: {_shown(field.default)})"
        lines.append(f"  {_variable(name)}\n      {field.description}{default}")
    parser = argparse.ArgumentParser(
        prog="modelyard-worker",
        description="Runs the model containers of one Docker host.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _shown(default: object) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return json.dumps(default)
    return str(default)


if __name__ == "__main__":
    main()
