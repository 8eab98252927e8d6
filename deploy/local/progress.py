"""Output while the stack starts: one line for each step, with the time it took."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.status import Status


class Progress:
    """Steps with a spinner on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    @contextmanager
    def step(self, title: str, *, since: float | None = None) -> Iterator[Step]:
        """Show the step `title` while it runs, then its result.

        `since` is the `time.monotonic()` of its beginning, if it began before this call.
        """
        began = since or time.monotonic()
        with self.console.status(escape(title)) as status:
            step = Step(title, self, status)
            try:
                yield step
            except BaseException:
                self.console.print(f"[red]✗[/red] {escape(title)}")
                raise
        took = f"({time.monotonic() - began:.1f} s)"
        self.console.print(f"[green]✓[/green] {escape(step.result)} [dim]{took}[/dim]")


class Step:
    """A running step; `result` is the line that is printed when it succeeds."""

    def __init__(self, title: str, progress: Progress, status: Status) -> None:
        self.title = title
        self.result = title
        self._progress = progress
        self._status = status

    def note(self, text: str) -> None:
        """Show what the step is doing: beside the spinner on a terminal, else as a line."""
        if self._progress.console.is_terminal:
            self._status.update(escape(f"{self.title}: {text}"))
        else:
            self._progress.say(f"  {text}")
