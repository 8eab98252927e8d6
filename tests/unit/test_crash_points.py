"""Crash points: what arms them, and that every call in the code names one of the registry."""

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.crash_points import CRASH_POINTS, VARIABLE, armed

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "dispatcher", "worker")
NAME = "worker.after_accept"


def test_without_the_variable_nothing_happens() -> None:
    armed({}, die=pytest.fail)(NAME)


def test_only_the_armed_name_kills() -> None:
    killed: list[str] = []
    crash = armed({VARIABLE: NAME}, die=killed.append)
    crash("worker.before_ack")
    assert killed == []
    crash(NAME)
    assert killed == [NAME]


def test_a_count_arms_that_time_only() -> None:
    killed: list[str] = []
    crash = armed({VARIABLE: f"{NAME}:3"}, die=killed.append)
    crash(NAME)
    crash(NAME)
    assert killed == []
    crash(NAME)
    crash(NAME)
    assert killed == [NAME]


@pytest.mark.parametrize("wish", ["", "worker.after_acept", f"{NAME}:0", f"{NAME}:often"])
def test_a_wish_that_names_no_crash_point_is_refused(wish: str) -> None:
    with pytest.raises(ValueError, match=r"crash point|invalid literal"):
        armed({VARIABLE: wish})


def test_an_armed_process_refuses_a_name_that_is_not_in_the_registry() -> None:
    with pytest.raises(ValueError, match="registry"):
        armed({VARIABLE: NAME}, die=pytest.fail)("worker.after_acept")


def test_the_process_is_killed_and_no_handler_runs() -> None:
    script = (
        "import atexit\n"
        "from modelyard.crash_points import crash_point\n"
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
