"""What users give in files: JSON and YAML, by the same strict rules."""

from pathlib import Path

import pytest
import typer

from modelyard.cli.documents import document, documents, entries, mapping, value_of
from modelyard.contract.messages import MAX_BATCH_BYTES

MODEL = """
name: m            # a comment
image: a/b:1
profile: http
env: {MODE: "on", DAY: 2026-11-27}
hooks:
  load: {path: /load}
"""


def written(folder: Path, content: str, name: str = "m.yaml") -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def test_yaml_is_read_as_json_has_it(tmp_path: Path) -> None:
    assert document(written(tmp_path, MODEL)) == {
        "name": "m",
        "image": "a/b:1",
        "profile": "http",
        "env": {"MODE": "on", "DAY": "2026-11-27"},
        "hooks": {"load": {"path": "/load"}},
    }


def test_a_yaml_file_may_hold_several_documents(tmp_path: Path) -> None:
    path = written(tmp_path, "---\nname: a\n---\nname: b\n---\n", "two.yml")
    assert documents(path) == [{"name": "a"}, {"name": "b"}]
    with pytest.raises(typer.BadParameter, match="2 documents"):
        document(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: &x [1]\nb: *x\n", "aliases (*name) are not allowed at line 2, column 4"),
        ("name: a\nname: b\n", "m.yaml: the name 'name' occurs twice at line 2, column 1"),
        ("name: a\n  b: c\n", "m.yaml: mapping values are not allowed here at line 2, column 4"),
        ("on: 1\n", "put it in quotes"),
        ("1: 1\n", "put it in quotes"),
        ("a: [\n", "line 2"),
        ("a: !!python/object/apply:os.getcwd []\n", "python"),
        ("a: .nan\n", "JSON has not"),
        ("a: !!binary aGFsbG8=\n", "JSON has not"),
        ("[" * 2_000, "m.yaml"),
        ("", "0 documents"),
        ("a: " + "x" * MAX_BATCH_BYTES, "more than"),
    ],
)
def test_what_json_would_not_have_is_refused_with_its_place(
    tmp_path: Path, content: str, told: str
) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        document(written(tmp_path, content))
    assert told in str(refused.value)


def test_json_files_stay_json(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="Expecting value"):
        document(written(tmp_path, "name: m", "m.json"))
    assert value_of("@" + written(tmp_path, '{"a": [1]}', "m.json")) == {"a": [1]}
    with pytest.raises(typer.BadParameter, match="--input"):
        value_of("{")


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ("", "m.yaml", "m.yaml holds no entry"),
        ("# nothing\n---\n", "m.yaml", "m.yaml holds no entry"),
        ("", "m.json", "It is empty"),
        (" \n", "m.json", "It is empty"),
        ("7", "m.json", "m.json: an entry is an object with a name"),
        ('[{"name": "a"}]', "m.json", "m.json holds a list"),
        ("name: a\n---\nname: 7\n", "m.yaml", "m.yaml, document 2: an entry is an object"),
    ],
)
def test_a_file_that_holds_no_entry_is_refused_with_its_place(
    tmp_path: Path, content: str, name: str, told: str
) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        entries(written(tmp_path, content, name))
    assert told in str(refused.value)


def test_a_list_of_requests_says_which_one_is_none() -> None:
    with pytest.raises(typer.BadParameter, match="number 3 of the list"):
        mapping(7, 2)
