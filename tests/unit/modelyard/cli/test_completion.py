"""Completion: the script that a shell reads, and what it offers."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SHELL_IS_GIVEN = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
"""Else it is the shell that runs the tests, if one does."""


def _said(*command: str, **variables: str) -> str:
    """Return what a program printed that finds `modelyard` in its path."""
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "TERM": "dumb", **variables}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout


def _script_for(shell: str) -> str:
    return _said(str(BIN / "modelyard"), "--show-completion", shell, **SHELL_IS_GIVEN)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("modelyard desc", "describe"),
        ("modelyard models ap", "apply"),
        ("modelyard jobs --hos", "--host"),
        ("modelyard jobs --state ter", "TERMINATED"),
    ],
)
def test_bash_completes_what_was_begun(line: str, offered: str) -> None:
    words = line.split()
    complete = (
        f"{_script_for('bash')}\n"
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        "_modelyard_completion modelyard\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    assert _said("bash", "--norc", "-c", complete).split() == [offered]


def test_no_error_is_printed_while_a_name_is_completed_that_another_command_deletes() -> None:
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "_MODELYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": "modelyard delete model ",
        "COMP_CWORD": "3",
    }
    ran = subprocess.run(
        [str(BIN / "modelyard")],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.stderr == ""


def test_zsh_is_given_a_script_that_asks_for_what_it_offers() -> None:
    script = _script_for("zsh")
    assert script.strip().startswith("#compdef modelyard")
    assert "_MODELYARD_COMPLETE=complete_zsh" in script
    asked = {"_MODELYARD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "modelyard desc"}
    assert '"describe":"Show one thing' in _said(str(BIN / "modelyard"), **asked)
