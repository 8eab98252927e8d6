"""Decision records: each has a number, a subject, a status and the three parts."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "decisions"
RECORDS = sorted(FOLDER.glob("*.md"))
STATUS = re.compile(r"Status: (accepted|superseded by \[\d{4}\]\(\S+\))(; .+)?\.")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_says_its_subject_its_status_and_why(record: Path) -> None:
    title, _, status, *rest = record.read_text().splitlines()
    assert re.fullmatch(rf"# {record.name[:4]}: .+", title)
    assert STATUS.fullmatch(status)
    text = "\n".join(rest)
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
    ]


def test_numbers_are_given_once_and_in_order() -> None:
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
