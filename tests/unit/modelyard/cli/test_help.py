"""`--help`: sentences that a terminal breaks where it ends, and not where the source does."""

from collections.abc import Iterator

import pytest
import typer

from modelyard.cli.main import commands


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
