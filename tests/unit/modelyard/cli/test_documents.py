"""What users give in files: JSON and YAML, by the same strict rules."""

from pathlib import Path

import pytest
import typer

from modelyard.cli.documents import document, documents, value_of
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
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("name: a\nname: b\n", "occurs twice"),
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
