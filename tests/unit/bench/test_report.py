"""The table and the file of a benchmark."""

import io
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench.report import Checkout, Row, Run, print_table, write_results

AT = datetime(2026, 11, 27, 15, 38, 28, tzinfo=UTC)
CHECKOUT = Checkout("0123456789abcdef", changed=False, at=AT)

ROWS = (
    Row("End to end", "3.1x Taskiq", goal=">= 3x Taskiq", met=True),
    Row("One at a time", "9x Celery", goal="<= 2.5x Celery", met=False),
    Row("Memory", "120 MiB"),
)


def test_the_table_shows_what_was_reached_beside_the_goal() -> None:
    console = Console(file=io.StringIO(), width=100)

    print_table(console, "Speed", ROWS, CHECKOUT)

    assert isinstance(console.file, io.StringIO)
    lines = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in console.file.getvalue().splitlines()
        if len(cells := line.strip("│").split("│")) > 1
    }
    assert lines["End to end"] == [">= 3x Taskiq", "3.1x Taskiq", "yes"]
    assert lines["One at a time"] == ["<= 2.5x Celery", "9x Celery", "no"]
    assert lines["Memory"] == ["", "120 MiB", ""]
    assert console.file.getvalue().rstrip().endswith(CHECKOUT.sentence)


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=100)

    print_table(console, "Speed", [Row("[a]", "not measured: [/foo] [red]", goal="[b]")], CHECKOUT)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(one in text for one in ("[a]", "[b]", "not measured: [/foo] [red]"))


def test_the_commit_and_the_date_of_the_beginning_are_in_words_and_in_the_file() -> None:
    changed = Checkout("0123456789abcdef", changed=True, at=AT)

    assert CHECKOUT.sentence == "Commit 0123456789ab. 2026-11-27 15:38 UTC."
    assert changed.sentence == (
        "Commit 0123456789ab, with changes that are not in it. 2026-11-27 15:38 UTC."
    )
    assert (CHECKOUT.name, changed.name) == ("0123456789abcdef", "0123456789abcdef-dirty")


def test_a_checkout_has_changes_if_more_than_results_differ_from_the_commit(
    tmp_path: Path,
) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    results = tmp_path / "bench" / "results.json"
    results.parent.mkdir()
    assert Checkout.now(tmp_path).commit == "unknown"

    git("init", "--quiet")
    results.write_text("{}")
    git("add", ".")
    git("commit", "--quiet", "--no-gpg-sign", "-m", "first")
    results.write_text("{1}")
    made = Checkout.now(tmp_path)
    (tmp_path / "new.py").touch()

    assert (len(made.commit), made.changed) == (40, False)
    assert Checkout.now(tmp_path).changed


def test_the_file_has_the_machine_and_the_figures_but_no_name_of_the_machine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.json"
    run = Run(CHECKOUT, "make bench", {"rabbitmq": "3.10.8"}, {"celery": "5.7.0"})

    write_results(path, run, ROWS, {"rates": [1.5, 2.5]})

    text = path.read_text()
    content = json.loads(text)
    assert content["command"] == "make bench"
    assert (content["at"], content["commit"]) == ("2026-11-27T15:38:28+00:00", CHECKOUT.commit)
    assert content["versions"]["rabbitmq"] == "3.10.8"
    assert content["versions"]["celery"] == "5.7.0"
    assert content["machine"]["cpus"] >= 1
    assert content["rows"][0]["met"] is True
    assert content["figures"] == {"rates": [1.5, 2.5]}
    assert str(Path.cwd()) not in text
    assert platform.node() not in text
