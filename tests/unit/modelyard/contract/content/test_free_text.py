"""What people are told of errors and engines: cut to a bound, whoever says it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.contract.content.free_text import (
    MAX_FACT_CHARS,
    MAX_FACTS_CHARS,
    MAX_FACTS_DEPTH,
    cut,
)
from modelyard.contract.errors import MAX_MESSAGE_CHARS, ErrorCode, ErrorInfo, ModelyardError
from modelyard.contract.messages import EngineFacts, InventoryItem, OperationReport, WorkerReports
from modelyard.store.records import error_document

OPERATION = "0190c2f0-0000-7000-8000-000000000001"
ERROR = {"code": "load_failed", "message": "No.", "detail": {"exit_code": 1}}
DEEP = 100_000


def report(**fields: object) -> OperationReport:
    base = {"operation_id": OPERATION, "epoch": 1, "seq": 1, "job_id": "j", "generation": 1}
    return OperationReport.model_validate_json(json.dumps({**base, "state": "FAILED", **fields}))


def error(**fields: object) -> ErrorInfo:
    found = report(error=ERROR | fields).error
    assert found is not None
    return found


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def nested(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = {"in": value} if number % 2 else [value]
    return {"in": value}


def test_a_report_whose_error_is_long_is_read_and_cut() -> None:
    found = error(message="x" * 100_000, detail={"log_tail": "y" * 100_000, "exit_code": 1})
    assert found.message == "x" * (MAX_MESSAGE_CHARS - 1) + "…"
    assert found.detail["log_tail"] == "y" * (MAX_FACT_CHARS - 1) + "…"
    assert found.detail["exit_code"] == 1


def test_what_a_worker_sends_is_kept_whole() -> None:
    detail = {
        "log_tail": "ä\n" * 1_024,
        "body": "b" * 1_000,
        "errors": [{"pointer": f"/a/{number}", "message": "m" * 200} for number in range(20)],
        "number": [1.5, None, True, -(1 << 63)],
    }
    assert error(detail=detail).detail == detail


@pytest.mark.parametrize(
    "detail",
    [
        {f"name-{number}": number for number in range(100_000)},
        {"list": list(range(100_000))},
        {"lists": [[]] * 100_000},
        {"texts": ["x" * 1_000] * 1_000},
        {"n" * 100_000: 1},
    ],
    ids=["names", "numbers", "lists", "texts", "one name"],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_facts_are_few_however_many_are_sent(detail: dict[str, Any], *, as_text: bool) -> None:
    found = error(detail=json.dumps(detail) if as_text else detail).detail
    assert len(json.dumps(found)) <= 2 * MAX_FACTS_CHARS


@pytest.mark.parametrize("as_text", [False, True])
def test_facts_are_as_deep_as_every_reader_can_take(*, as_text: bool) -> None:
    detail = nested(60)
    found = error(detail=json.dumps(detail) if as_text else detail).detail
    assert depth(found) == MAX_FACTS_DEPTH


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * DEEP + "]" * DEEP + "}", "{", "", "x" * (2 << 20)]
)
def test_facts_that_can_not_be_read_are_left_out(text: str) -> None:
    assert error(detail=text).detail == {}


def test_what_is_no_object_is_refused() -> None:
    for value in ("[1]", [1], 5):
        with pytest.raises(ValidationError):
            error(detail=value)


def test_what_no_reader_could_hold_is_left_out() -> None:
    """The dispatcher could not write an infinity, and got the same report again."""
    text = '{"a": Infinity, "b": NaN, "c": 1e999, "d": ' + "9" * 4_000 + ', "e": "\\ud800"}'
    found = error(detail=text)
    assert found.detail == {"a": None, "b": None, "c": None, "d": None, "e": "?"}
    (document,) = [error_document(found)]
    assert document is not None
    assert ErrorInfo.model_validate(document) == found


def test_a_record_of_an_older_version_is_read() -> None:
    stored = {"code": "exited", "message": "m" * 4_096, "detail": json.dumps({"a": "x" * 9_000})}
    assert len(ErrorInfo.model_validate(stored).detail["a"]) == MAX_FACT_CHARS


def test_our_own_errors_are_cut_too() -> None:
    assert len(ErrorInfo.of(ErrorCode.INTERNAL, "x" * 9_000).message) == MAX_MESSAGE_CHARS
    raised = ModelyardError(ErrorCode.INTERNAL, "x" * 9_000, path="y" * 9_000)
    assert len(raised.info().detail["path"]) == MAX_FACT_CHARS


def test_an_engine_is_described_in_short() -> None:
    facts = EngineFacts(version="v" * 9_000, api_version="a" * 9_000, operating_system="o" * 9_000)
    assert {len(one) for one in (facts.version, facts.api_version, facts.operating_system)} == {256}


@given(st.text(), st.integers(1, 20))
def test_a_cut_text_is_its_beginning_within_the_bound(text: str, most: int) -> None:
    kept = cut(text, most)
    assert len(kept) <= most
    assert kept == text if len(text) <= most else text.startswith(kept[:-1])


ITEM = {
    "container_id": "c" * 64,
    "job_id": "j",
    "generation": 1,
    "operation_id": OPERATION,
    "running": True,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"container_id": "c" * 65},
        {"container_id": "no-hex-12345"},
        {"job_id": "j" * 129},
        {"exit_code": 1 << 63},
    ],
)
def test_names_and_ids_beyond_their_bounds_are_refused(fields: dict[str, Any]) -> None:
    InventoryItem.model_validate(ITEM)
    with pytest.raises(ValidationError):
        InventoryItem.model_validate(ITEM | fields)


def test_so_are_those_of_reports() -> None:
    with pytest.raises(ValidationError):
        report(container_id="c" * 65)
    with pytest.raises(ValidationError):
        WorkerReports(host_id="h", incarnation="i" * 65)
    assert report(container_id="c" * 12).container_id == "c" * 12
