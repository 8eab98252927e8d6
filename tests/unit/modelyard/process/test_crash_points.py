"""Crash points: what arms them, and that every call in the code names one of the registry."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.process.crash_points import CRASH_POINTS, VARIABLE, CrashActions, armed, crash_line

ROOT = Path(__file__).resolve().parents[4]
SERVICES = ("gateway", "dispatcher", "worker")
NAME = "worker.after_accept"


def fail(*_: object) -> None:
    pytest.fail("It came to a crash point that was not asked for.")


NONE = CrashActions(die=fail, freeze=fail, block=fail)


def test_without_the_variable_nothing_happens() -> None:
    armed({}, NONE)(NAME)


def test_only_the_armed_name_kills() -> None:
    killed: list[bool] = []
    crash = armed({VARIABLE: NAME}, CrashActions(die=lambda: killed.append(True)))
    crash("worker.before_ack")
    assert not killed
    crash(NAME)
    assert killed == [True]


def test_a_count_arms_that_time_only() -> None:
    killed: list[bool] = []
    crash = armed({VARIABLE: f"{NAME}:3"}, CrashActions(die=lambda: killed.append(True)))
    crash(NAME)
    crash(NAME)
    assert not killed
    crash(NAME)
    crash(NAME)
    assert killed == [True]


def test_a_process_blocks_once_for_as_long_as_was_asked() -> None:
    blocked: list[float] = []
    crash = armed({VARIABLE: f"{NAME}:block=2.5"}, CrashActions(die=fail, block=blocked.append))
    crash("worker.before_ack")
    assert not blocked
    crash(NAME)
    crash(NAME)
    assert blocked == [2.5]


def test_a_process_that_blocks_keeps_its_thread() -> None:
    began = time.monotonic()
    armed({VARIABLE: f"{NAME}:block=0.2"})(NAME)
    assert time.monotonic() - began >= 0.2


WRONG = [
    "",
    "worker.after_acept",
    "worker.after_acept:freeze",
    f"{NAME}:0",
    f"{NAME}:often",
    f"{NAME}:block",
    f"{NAME}:block=0",
    f"{NAME}:block=nan",
    f"{NAME}:block=inf",
    f"{NAME}:block=long",
]


@pytest.mark.parametrize("wish", WRONG)
def test_a_wish_that_names_no_crash_point_is_refused(wish: str) -> None:
    with pytest.raises(ValueError, match=r"crash point|invalid literal|could not convert"):
        armed({VARIABLE: wish})


def test_an_armed_process_refuses_a_name_that_is_not_in_the_registry() -> None:
    with pytest.raises(ValueError, match="registry"):
        armed({VARIABLE: NAME}, NONE)("worker.after_acept")


def test_the_process_is_killed_and_no_handler_runs() -> None:
    script = (
        "import atexit\n"
        "from modelyard.process.crash_points import crash_point\n"
        "atexit.register(print, 'a handler ran')\n"
        "try:\n"
        f"    crash_point({NAME!r})\n"
        "finally:\n"
        "    print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={VARIABLE: NAME},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == ""


def test_a_process_freezes_itself_and_goes_on_once_it_is_thawed() -> None:
    script = (
        "from modelyard.process.crash_points import crash_point\n"
        f"crash_point({NAME!r})\n"
        f"crash_point({NAME!r})\n"
        "print('went on')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={VARIABLE: f"{NAME}:freeze"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), status
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert (out, err) == ("went on\n", crash_line(NAME, process.pid))


def calls_in(folder: Path) -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "crash_point":
                yield path, node


@pytest.mark.parametrize("service", SERVICES)
def test_every_call_names_a_crash_point_of_its_own_service(service: str) -> None:
    for path, call in calls_in(ROOT / service):
        (argument,) = call.args
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert isinstance(argument, ast.Constant), f"{where}: not a literal name"
        assert argument.value in CRASH_POINTS, f"{where}: {argument.value!r} is not registered"
        assert str(argument.value).partition(".")[0] == service, where
