"""Threads for calls that may never return."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_daemon_thread(work: Callable[[], T], *, name: str) -> asyncio.Future[T]:
    """Run `work` in a thread of its own, for which the process does not wait when it exits.

    The event loop's own threads are few and are joined at exit, so stuck calls would block other
    work and the exit.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as fault:  # noqa: BLE001 - raised again where the future is awaited
            done.set_exception(fault)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(done)
