"""The commands of the catalog where several people change one entry."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from modelyard.contract.errors import ErrorCode
from tests.support.command_line import Ran

ENTRIES = {
    "models": {"name": "m", "image": "a/b:1", "profile": "batch"},
    "datasets": {"name": "m", "path": "/srv/d"},
}
TAG = '"5f2c"'
Catalog = Callable[..., Ran]


class ScriptedCatalog:
    """Has one entry, which nobody may change who does not know its version."""

    def __init__(self, shelf: str) -> None:
        self.shelf = shelf
        self.changes: list[tuple[str, str | None]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        assert request.url.path == f"/v1/{self.shelf}/m"
        tag = request.headers.get("If-Match")
        if tag not in (None, TAG, "*"):
            problem = {"code": ErrorCode.PRECONDITION_FAILED, "detail": "The entry has changed."}
            return httpx2.Response(412, json=problem)
        if request.method != "GET":
            self.changes.append((request.method, tag))
        if request.method == "DELETE":
            return httpx2.Response(204)
        return httpx2.Response(200, json=ENTRIES[self.shelf], headers={"ETag": TAG})


@pytest.fixture(params=["models", "datasets"])
def catalog(request: pytest.FixtureRequest) -> ScriptedCatalog:
    return ScriptedCatalog(request.param)


@pytest.fixture
def file(catalog: ScriptedCatalog, tmp_path: Path) -> str:
    made = tmp_path / "entry.json"
    made.write_text(json.dumps(ENTRIES[catalog.shelf]))
    return str(made)


def test_an_entry_is_shown_with_its_etag_and_for_machines_as_it_is_applied(
    catalog: ScriptedCatalog, run: Callable[..., Ran]
) -> None:
    shown = run(catalog, catalog.shelf, "get", "m")
    assert shown.err == f"ETag {TAG}\n"
    assert TAG not in shown.out
    as_json = run(catalog, catalog.shelf, "get", "m", "--json")
    assert json.loads(as_json.out).items() >= ENTRIES[catalog.shelf].items()
    assert as_json.err == ""
    assert run(catalog, catalog.shelf, "get", "m", "--etag").out == f"{TAG}\n"


@pytest.mark.parametrize("given", [TAG, TAG.strip('"'), "*"])
def test_what_is_still_as_it_was_seen_is_changed(
    catalog: ScriptedCatalog, file: str, run: Callable[..., Ran], given: str
) -> None:
    assert run(catalog, catalog.shelf, "apply", file, "--if-match", given).code == 0
    assert run(catalog, catalog.shelf, "delete", "m", "--if-match", given).code == 0
    sent = given if given == "*" else TAG
    assert catalog.changes == [("PUT", sent), ("DELETE", sent)]


def test_without_a_precondition_an_entry_is_replaced(
    catalog: ScriptedCatalog, file: str, run: Callable[..., Ran]
) -> None:
    assert run(catalog, catalog.shelf, "apply", file).code == 0
    assert run(catalog, catalog.shelf, "delete", "m").code == 0
    assert catalog.changes == [("PUT", None), ("DELETE", None)]


def test_what_somebody_else_has_changed_stays_and_that_is_said(
    catalog: ScriptedCatalog, file: str, run: Callable[..., Ran]
) -> None:
    for what in (("apply", file), ("delete", "m")):
        refused = run(catalog, catalog.shelf, *what, "--if-match", "older")
        assert refused.code == 1
        assert "The entry has changed. (precondition_failed)" in refused.err
        assert f"modelyard {catalog.shelf} get NAME --etag" in refused.err
    assert catalog.changes == []


def test_one_etag_is_not_that_of_several_entries(
    catalog: ScriptedCatalog, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    several = tmp_path / "several.yaml"
    several.write_text("name: a\n---\nname: b\n")
    refused = run(catalog, catalog.shelf, "apply", str(several), "--if-match", TAG)
    assert (refused.code, catalog.changes) == (2, [])
    assert "holds 2 entries; an ETag is that of one" in refused.err
