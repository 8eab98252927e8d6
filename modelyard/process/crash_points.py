"""Named points at which a test may stop a process, to check what a crash between two steps leaves.

`crash_point(NAME)` does nothing, unless the process was started with `MODELYARD_CRASH_POINT`, which
only tests set. The variable is one of:

- `NAME`: the process kills itself with SIGKILL, which no handler sees; `NAME:3`: the third time;
- `NAME:freeze`: the process stops itself with SIGSTOP, until somebody sends SIGCONT;
- `NAME:block=40`: the thread sleeps for 40 s, and with it the event loop; other threads go on.

Each happens once, and the process writes a line about it to stderr.

No process reads the environment anywhere else but in its `settings.py`. This is on purpose:
`--help` would show a setting, and every constructor would have to pass it on, only for tests. The
variable is read once, when this module is imported.
"""

import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

VARIABLE = "MODELYARD_CRASH_POINT"

CRASH_POINTS = frozenset(
    {
        "gateway.after_record",
        "gateway.before_publish",
        "gateway.after_publish",
        "dispatcher.lease.after_acquire",
        "dispatcher.intake.after_record",
        "dispatcher.intake.before_ack",
        "dispatcher.after_reserve",
        "dispatcher.after_hold",
        "dispatcher.after_assign",
        "dispatcher.after_claim",
        "dispatcher.after_publish",
        "dispatcher.recorder.after_results",
        "dispatcher.transfers.after_piece",
        "dispatcher.recorder.after_jobs",
        "dispatcher.recorder.after_release",
        "dispatcher.recorder.after_let_go",
        "dispatcher.recorder.after_operations",
        "dispatcher.recorder.before_ack",
        "dispatcher.lost.after_jobs",
        "dispatcher.lost.after_operations",
        "dispatcher.hold.after_jobs",
        "dispatcher.again.after_let_go",
        "dispatcher.again.after_release",
        "dispatcher.again.after_requeue",
        "dispatcher.end.after_job",
        "dispatcher.end.after_release",
        "dispatcher.cancel.after_end",
        "dispatcher.cancel.after_let_go",
        "dispatcher.dead.after_letters",
        "dispatcher.dead.before_ack",
        "dispatcher.deadlines.after_end",
        "dispatcher.drain.after_tell",
        "dispatcher.drain.after_operations",
        "dispatcher.boot.after_online",
        "dispatcher.boot.after_jobs",
        "dispatcher.boot.after_operations",
        "dispatcher.found_down.after_job",
        "dispatcher.move.after_reserve",
        "dispatcher.move.after_begin",
        "dispatcher.move.after_record",
        "dispatcher.move.after_claim",
        "dispatcher.move.after_arrive",
        "dispatcher.move_given_up.after_legs",
        "dispatcher.move_given_up.after_end",
        "dispatcher.recovery.after_record",
        "dispatcher.sweep.after_expire",
        "dispatcher.sweep.after_suspect",
        "dispatcher.sweep.after_look",
        "dispatcher.sweep.after_mark",
        "dispatcher.sweep.after_take_back",
        "dispatcher.sweep.after_unload",
        "dispatcher.residency.after_load",
        "dispatcher.residency.after_unload",
        "dispatcher.residency.after_create",
        "dispatcher.idle.after_unload",
        "worker.pull.before_pull",
        "worker.pull.after_pull",
        "worker.stop.after_stop",
        "worker.stop.after_halt",
        "worker.before_accept",
        "worker.discard.after_stop",
        "worker.after_accept",
        "worker.before_ack",
        "worker.before_create",
        "worker.after_create",
        "worker.after_start",
        "worker.after_load",
        "worker.after_infer",
        "worker.transfer.after_piece",
        "worker.after_unload",
        "worker.before_remove",
        "worker.after_remove",
        "worker.before_end",
    },
)
"""Every name that a process may pass; those of a service begin with its own name."""

CrashPoint = Callable[[str], None]


def _do_nothing(_name: str) -> None:
    """Be the crash point of every process that no test has armed."""


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # any thread may get the signal; this thread must not go on meanwhile
    raise AssertionError


def _freeze() -> None:
    # The signal goes to this very thread, so that it stops at once; another thread might get a
    # signal to the process later.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


@dataclass(frozen=True, slots=True)
class CrashActions:
    """What a crash point does to the process; tests replace it."""

    die: Callable[[], object] = _die
    freeze: Callable[[], object] = _freeze
    block: Callable[[float], object] = time.sleep


def crash_line(name: str, pid: int) -> str:
    """Return the line that a process writes when it reaches the point that it is armed with."""
    return f"crash point {name} in process {pid}\n"


def _parse_action(how: str, actions: CrashActions) -> tuple[Callable[[], object], int]:
    """Return the action, and how often the process must reach the point before it happens."""
    if how == "freeze":
        return actions.freeze, 1
    if how.startswith("block="):
        seconds = float(how.removeprefix("block="))
        if not 0 < seconds < math.inf:
            raise ValueError(f"no seconds to block a crash point for: {how}")
        return functools.partial(actions.block, seconds), 1
    return actions.die, int(how or "1")


def armed(environment: Mapping[str, str], actions: CrashActions | None = None) -> CrashPoint:
    """Return the function `crash_point` for this environment.

    Raises ValueError if the variable names no crash point, a count that is not 1 or more, or
    seconds that are not more than 0. What it returns for an armed process raises ValueError at a
    name that is not in the registry.
    """
    setting = environment.get(VARIABLE)
    if setting is None:
        return _do_nothing
    wanted, _, how = setting.partition(":")
    action, left = _parse_action(how, actions or CrashActions())
    if wanted not in CRASH_POINTS or left < 1:
        raise ValueError(f"{VARIABLE}={setting} names no crash point")

    def crash(name: str) -> None:
        nonlocal left
        if name not in CRASH_POINTS:
            raise ValueError(f"{name} is not in the registry of crash points")
        if name == wanted:
            left -= 1
            if left == 0:
                os.write(2, crash_line(name, os.getpid()).encode())
                action()

    return crash


crash_point: CrashPoint = armed(os.environ)
