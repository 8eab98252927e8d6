"""What else the product takes from the machine: its clocks, ids and names of places to die at."""

import sys
import time
import uuid
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from types import ModuleType
from typing import Any
from unittest.mock import patch

import structlog
import uuid_utils.compat

from modelyard.process import crash_points
from tests.statemachine.loop import VirtualLoop, current_process

LOGGED = 400
"""Lines of the log that are kept to explain a failure."""

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualTime(ModuleType):
    """In the place of the module `time` in the modules of the product."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__("time")
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def clock_gettime(self, clock: int) -> float:
        del clock
        return self._loop.time()


@contextmanager
def virtual_machine(loop: VirtualLoop, crash_point: Callable[[str], None]) -> Iterator[list[str]]:
    """Give the product the loop's time and ids from a counter; yield its log."""
    numbers = count(1)
    clock = VirtualTime(loop)
    lines: list[str] = []

    def made_uuid() -> uuid.UUID:
        number = next(numbers)
        return uuid.UUID(int=(int(loop.time() * 1_000) << 80) | (0x7000 << 64) | number)

    def note(_: object, level: str, event: MutableMapping[str, Any]) -> str:
        process = current_process()
        name = process.name if process else "-"
        words = " ".join(f"{key}={value}" for key, value in event.items() if key != "event")
        lines.append(f"{loop.time():9.3f} {name} {level} {event['event']} {words}"[:400])
        del lines[:-LOGGED]
        raise structlog.DropEvent

    with ExitStack() as patched:
        for module in _product():
            if getattr(module, "time", None) is time:
                patched.enter_context(patch.object(module, "time", clock))
            if hasattr(module, "crash_point") and module is not crash_points:
                patched.enter_context(patch.object(module, "crash_point", crash_point))
            for kind in vars(module).values():
                defaults = getattr(getattr(kind, "__init__", None), "__kwdefaults__", None) or {}
                for name, value in defaults.items():
                    if value is time.monotonic:
                        patched.enter_context(patch.dict(defaults, {name: clock.monotonic}))
        patched.enter_context(patch.object(uuid, "uuid4", made_uuid))
        patched.enter_context(patch.object(uuid_utils.compat, "uuid7", made_uuid))
        patched.enter_context(
            patch("dispatcher.events._now", lambda: _BEGINNING + timedelta(seconds=loop.time()))
        )
        before = structlog.get_config()
        structlog.configure(processors=[note])
        try:
            yield lines
        finally:
            structlog.configure(**before)


def _product() -> list[ModuleType]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in {"dispatcher", "gateway", "worker", "modelyard"}
    ]
