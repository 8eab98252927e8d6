"""Tables: one line an item for a pipe, and no broken words on a terminal.

A pipe gets every column at its full width. A terminal gets the columns that fit: empty ones go
first, then those that the table calls the least important, and the last column wraps at words.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from modelyard.cli.printing.plain import one_line

GAP = "  "
_LEAST_TEXT = 24
"""Columns of a terminal that a wrapped text gets at least."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A table that is laid out: lines of cells, each padded, and what had to be left out."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]


def laid_out(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    least: Sequence[str] = (),
    width: int | None,
) -> Layout:
    """Lay out a table for a terminal of `width` columns, or for a pipe (null).

    `least` names the columns that may go if the width is too small, the least important first.
    """
    table = [tuple(one_line(cell) for cell in row) for row in rows]
    shown = list(range(len(names)))
    left_out: list[str] = []
    columns = ([name, *(row[at] for row in table)] for at, name in enumerate(names))
    widths = [max(map(cell_len, column)) for column in columns]
    if width is not None:
        shown = [at for at in shown if at == 0 or any(row[at] for row in table)] if table else shown
        for name in least:
            if _total(widths, shown) <= width:
                break
            at = names.index(name)
            if at in shown:
                shown.remove(at)
                left_out.append(name)
    room = None if width is None else width - _total(widths, shown[:-1]) - len(GAP)
    lines = [
        line for row in table for line in _lines([row[at] for at in shown], widths, shown, room)
    ]
    header = _padded([names[at] for at in shown], [widths[at] for at in shown])
    return Layout(header, tuple(lines), tuple(left_out))


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[at] for at in shown) + len(GAP) * max(len(shown) - 1, 0)


def _lines(
    cells: list[str], widths: Sequence[int], shown: Sequence[int], room: int | None
) -> list[tuple[str, ...]]:
    """Return one row as lines; its last cell is wrapped at words if it is longer than `room`."""
    padding = [widths[at] for at in shown]
    if room is None or len(cells) < 2 or cell_len(cells[-1]) <= room:  # noqa: PLR2004
        return [_padded(cells, padding)]
    wrapped = textwrap.wrap(
        cells[-1], max(room, _LEAST_TEXT), break_long_words=False, break_on_hyphens=False
    )
    first, *rest = wrapped
    empty = [""] * (len(cells) - 1)
    return [
        _padded([*cells[:-1], first], padding),
        *(_padded([*empty, text], padding) for text in rest),
    ]


def _padded(cells: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    """Pad all cells but the last."""
    *front, last = cells
    return (
        *(
            cell + " " * (width - cell_len(cell))
            for cell, width in zip(front, widths[:-1], strict=True)
        ),
        last,
    )
