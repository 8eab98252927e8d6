"""The table and the file of a benchmark."""

import io
import json
import platform
from pathlib import Path

from rich.console import Console

from bench.report import Row, Run, print_table, write_results

ROWS = (
    Row("End to end", "3.1x Taskiq", goal=">= 3x Taskiq", met=True),
    Row("One at a time", "9x Celery", goal="<= 2.5x Celery", met=False),
    Row("Memory", "120 MiB"),
)


def test_the_table_shows_what_was_reached_beside_the_goal() -> None:
    console = Console(file=io.StringIO(), width=100)

    print_table(console, "Speed", ROWS)

    assert isinstance(console.file, io.StringIO)
    lines = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in console.file.getvalue().splitlines()
        if len(cells := line.strip("│").split("│")) > 1
    }
    assert lines["End to end"] == [">= 3x Taskiq", "3.1x Taskiq", "yes"]
    assert lines["One at a time"] == ["<= 2.5x Celery", "9x Celery", "no"]
    assert lines["Memory"] == ["", "120 MiB", ""]


def test_the_file_has_the_machine_and_the_figures_but_no_name_of_the_machine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.json"
    run = Run("make bench", {"rabbitmq": "3.10.8"}, {"celery": "5.7.0"})

    write_results(path, run, ROWS, {"rates": [1.5, 2.5]})

    text = path.read_text()
    content = json.loads(text)
    assert content["command"] == "make bench"
    assert content["versions"]["rabbitmq"] == "3.10.8"
    assert content["versions"]["celery"] == "5.7.0"
    assert content["machine"]["cpus"] >= 1
    assert content["rows"][0]["met"] is True
    assert content["figures"] == {"rates": [1.5, 2.5]}
    assert str(Path.cwd()) not in text
    assert platform.node() not in text
