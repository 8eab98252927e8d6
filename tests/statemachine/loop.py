"""An event loop whose time is its own, and processes in it that can be stopped at any await.

A minute of waiting takes no time, the order of everything is the same at each run, and what a
`Process` has begun can be held back (frozen, or killed: held back for ever) wherever it stands.
"""

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STANDSTILL = 200_000
"""Turns of the loop without any time passing after which somebody must be spinning."""


class Process:
    """What is begun in its name, and by that in turn, belongs to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held_back = False
        """True while it is frozen, and after it was killed."""
        self.waiting: list[asyncio.Handle] = []
        """What would have been called meanwhile."""


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_process() -> Process | None:
    """Return in whose name this is called; None for tests and servers."""
    return _process.get()


class _HeldBack(asyncio.Handle):
    """A callback of some process: it waits while its process is held back."""

    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)  # type: ignore[attr-defined]
        if process is not None and process.held_back:
            process.waiting.append(self)
        else:
            super()._run()


class _TimerHandle(_HeldBack, asyncio.TimerHandle):
    """One at its time."""


class _Task(asyncio.Task[Any]):
    """One whose place in a set does not depend on where in memory it lies."""

    def __init__(self, number: int, *args: Any, **more: Any) -> None:
        self._number = number
        super().__init__(*args, **more)

    def __hash__(self) -> int:
        return self._number


class _Future(asyncio.Future[Any]):
    """The same for what is no task."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _NothingToRead:
    """In the place of a selector: instead of waiting it lets the time pass."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("Everything waits, and nothing will ever happen.")
        if timeout > 0:
            self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs until nothing is to be done, and then goes on to the next time at which something is."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NothingToRead(self)
        self._now = 1_000.0
        self._turns = 0
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._processes: list[Process] = []
        self.set_exception_handler(lambda *_: None)  # of the killed nobody asks
        self.set_task_factory(self._made_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._numbers), self)

    def pass_time(self, seconds: float) -> None:
        """Let the time go on."""
        self._now += seconds
        self._turns = 0

    def start(
        self, process: Process, work: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Begin something in the name of a process."""
        context = contextvars.Context()
        context.run(_process.set, process)
        self._processes.append(process)
        return self.create_task(work, context=context, name=name)

    def serve(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something that belongs to no process, whoever asks for it."""
        return self.create_task(work, context=contextvars.Context())

    def advance(self, seconds: float) -> None:
        """Run everything until the time is `seconds` later."""
        self._turns = 0
        self.call_at(self._now + seconds, self.stop, context=contextvars.Context())
        self.run_forever()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Call it at once: while a real thread works, no virtual time may pass."""
        del executor
        answer = self.create_future()
        try:
            answer.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            answer.set_exception(error)
        return answer

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run everything until this is done; return its result."""
        return self.run_until_complete(self.serve(work))

    def go_on(self, process: Process) -> None:
        """Let a process go on that was held back."""
        process.held_back = False
        waiting, process.waiting = process.waiting, []
        self._ready.extend(waiting)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Cancel whatever is left, of the dead too, and close."""
        for process in self._processes:
            self.go_on(process)
        for _ in range(20):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.advance(30.0)
        self.close()

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _call_soon(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> asyncio.Handle:
        handle = _HeldBack(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns > STANDSTILL:
            raise RuntimeError("Somebody is spinning: the time stands still.")
        super()._run_once()  # type: ignore[misc]

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing is ever read."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""

    def _made_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any
    ) -> asyncio.Task[Any]:
        task = _Task(next(self._numbers), work, loop=loop, **more)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=contextvars.Context())
        return task
