"""What a person sees while the stack starts: one line for every step, with the time it took."""

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
        """Show that `title` goes on, then how it ended.

        `since` is the `time.monotonic()` of a beginning that lies further back.
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
    """A step under way; `result` is the line that stays when it has ended well."""

    def __init__(self, title: str, progress: Progress, status: Status) -> None:
        self.title = title
        self.result = title
        self._progress = progress
        self._status = status

    def note(self, text: str) -> None:
        """Say what the step is at: beside the spinner on a terminal, else as a line."""
        if self._progress.console.is_terminal:
            self._status.update(escape(f"{self.title}: {text}"))
        else:
            self._progress.say(f"  {text}")
