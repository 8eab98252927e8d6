"""`--help` of every command: it is there, and a terminal breaks its sentences where it ends."""

from collections.abc import Iterator

import pytest
import typer

from modelyard.cli.main import app, commands


def _helps(group: typer.Typer, path: str = "modelyard") -> Iterator[tuple[str, str]]:
    for command in group.registered_commands:
        yield f"{path} {command.name}", command.help or ""
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from _helps(inner.typer_instance, f"{path} {inner.name}")


@pytest.mark.parametrize(("command", "text"), list(_helps(commands)))
def test_a_paragraph_of_a_help_has_no_line_ends_of_its_own(command: str, text: str) -> None:
    assert text, command
    for paragraph in text.split("\n\n"):
        assert "\n" not in paragraph, command


def _paths(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that name each command and each group of commands."""
    yield path
    for command in group.registered_commands:
        yield (*path, command.name or "")
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from _paths(inner.typer_instance, (*path, inner.name or ""))


@pytest.mark.parametrize("path", list(_paths(commands)), ids=" ".join)
def test_every_command_explains_itself(
    capsys: pytest.CaptureFixture[str], path: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as exited:
        app([*path, "-h"])
    assert exited.value.code == 0
    assert f"Usage: {' '.join(('modelyard', *path))} " in capsys.readouterr().out
