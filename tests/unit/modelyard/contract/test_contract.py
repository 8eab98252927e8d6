"""The contract: tables that are whole, JSON that is strict, ids that stay what they are."""

import json
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.contract.catalog.entries import DatasetSpec, Hook, ModelSpec, Profile, Resources
from modelyard.contract.errors import SENTENCES, ErrorCode, InvalidRequestError
from modelyard.contract.ids import ID_PATTERN, new_operation_id, operation_id_for_key
from modelyard.contract.json_bounds import MAX_DEPTH
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import (
    JOB_TRANSITIONS,
    OPERATION_TRANSITIONS,
    TERMINAL_STATES,
    VERB_RULES,
    JobState,
    OperationState,
    Verb,
    job_sources,
    operation_sources,
)
from modelyard.contract.strict_json import canonical_json, dump_json, parse_json
from modelyard.contract.validation import parse_request

MIB = 1 << 20


def test_every_state_and_verb_has_its_row() -> None:
    assert set(OPERATION_TRANSITIONS) == set(OperationState)
    assert set(JOB_TRANSITIONS) == set(JobState)
    assert set(VERB_RULES) == set(Verb)
    assert set(SENTENCES) == set(ErrorCode)


def test_terminal_states_are_the_six_of_the_design() -> None:
    assert {
        OperationState.SUCCEEDED,
        OperationState.FAILED,
        OperationState.TIMED_OUT,
        OperationState.CANCELLED,
        OperationState.REJECTED,
        OperationState.EXPIRED,
    } == TERMINAL_STATES


def test_every_operation_can_end_from_wherever_it_is() -> None:
    reachable = dict(OPERATION_TRANSITIONS)
    for state in OperationState:
        seen, ahead = {state}, [state]
        while ahead:
            for following in reachable[ahead.pop()] - seen:
                seen.add(following)
                ahead.append(following)
        assert seen & TERMINAL_STATES


def test_sources_are_the_table_read_backwards() -> None:
    for target in OperationState:
        for source in OperationState:
            assert (source in operation_sources(target)) == (
                target in OPERATION_TRANSITIONS[source]
            )
    assert job_sources(JobState.LOADED) == {JobState.CREATED, JobState.LOADED}


def test_every_verb_leads_along_a_legal_path() -> None:
    for rule in VERB_RULES.values():
        for start in rule.starts_from:
            assert rule.leads_to in JOB_TRANSITIONS[start] | {start}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"[1e999]",
        b'{"a": 1, "a": 1}',
        b"\xff",
        b'"\\ud800"',
        b'{"\\udc00": 1}',
        b"1" * 500,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
    ],
)
def test_odd_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(body, max_bytes=MIB)
    assert refused.value.code is ErrorCode.INVALID_JSON


def test_a_body_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(b"not even json", max_bytes=5)
    assert refused.value.code is ErrorCode.BODY_TOO_LARGE


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_json_that_is_well_formed_comes_through_unchanged(value: object) -> None:
    assert parse_json(dump_json(value).encode(), max_bytes=MIB) == value
    assert parse_json(canonical_json(value).encode(), max_bytes=MIB) == value
    assert parse_json(json.dumps(value).encode(), max_bytes=MIB) == value


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "../images/prune",
        "abc?force=1",
        "a\n",
        "a b",
        "%2e%2e",
        "a\x00",
        "ä",
        "-a",
        ".a",
        "a" * 129,
    ],
)
def test_ids_that_could_leave_their_place_are_refused(bad: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_request({"job_id": bad, "operation_type": "TERMINATE"})
    assert not re.fullmatch(ID_PATTERN, bad)


@pytest.mark.parametrize("field", list(JobRequest.model_fields))
def test_operators_are_refused_in_every_field(field: str) -> None:
    request = {"job_id": "j", "operation_type": "INFER", "input": 1}
    if field == "input":
        assert parse_request(request | {field: {"$ne": ""}}).input == {"$ne": ""}
        return
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(request | {field: {"$ne": ""}})
    assert refused.value.detail["errors"][0]["pointer"].startswith(f"/{field}")


@pytest.mark.parametrize("verb", ["DEPLOY_LOAD", "DEPLOY_UNLOAD", "TERMINATE"])
@pytest.mark.parametrize("container_id", ["", None, "ab" * 32, "aa", "../x"])
def test_a_request_says_which_container_it_means(verb: str, container_id: str | None) -> None:
    body = {"job_id": "j-1", "model": "m-131", "operation_type": verb, "container_id": container_id}
    assert parse_request(body).container_id == (container_id or None)


@pytest.mark.parametrize("verb", ["DEPLOY_CREATE", "TEMP"])
@pytest.mark.parametrize("container_id", ["", None, "aa", "ASDF", "x" * 9_999, 5, [1], {"$ne": ""}])
def test_what_makes_a_container_ignores_the_id_of_one(verb: str, container_id: object) -> None:
    """The original system's clients send something there; a retry without it is the same."""
    body = {"job_id": "j-1", "model": "m-131", "operation_type": verb}
    ignored = parse_request(body | {"container_id": container_id})
    assert ignored == parse_request(body)
    assert ignored.payload_hash() == parse_request(body).payload_hash()


def test_verbs_that_place_need_a_model() -> None:
    with pytest.raises(InvalidRequestError, match="TEMP needs a model"):
        parse_request({"job_id": "j", "operation_type": "TEMP"})


def test_the_payload_hash_sees_meaning_not_spelling() -> None:
    bare = parse_request({"job_id": "j", "operation_type": "TEMP", "model": "m"})
    spelled = parse_request(
        {"operation_type": "TEMP", "model": "m", "dataset": "", "priority": 0, "job_id": "j"}
    )
    other = parse_request({"job_id": "j", "operation_type": "TEMP", "model": "m", "priority": 1})
    assert bare.payload_hash() == spelled.payload_hash() != other.payload_hash()


def test_operation_ids_are_uuids_of_the_promised_versions() -> None:
    assert uuid.UUID(new_operation_id()).version == 7
    assert uuid.UUID(operation_id_for_key("k")).version == 5
    assert operation_id_for_key("k") == operation_id_for_key("k") != operation_id_for_key("l")
    assert operation_id_for_key("k", tenant="other") != operation_id_for_key("k")


@pytest.mark.parametrize(
    ("size", "count"), [("512m", 512 << 20), ("2g", 2 << 30), ("2GiB", 2 << 30), (7 << 20, 7 << 20)]
)
def test_sizes_count_as_docker_counts(size: object, count: int) -> None:
    assert Resources.model_validate({"memory": size}).memory == count


@pytest.mark.parametrize("size", ["2 apples", "", "-1", 1.5, True, "6b"])
def test_sizes_that_are_none_are_refused(size: object) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate({"memory": size})


@pytest.mark.parametrize(
    "path", ["http://evil/x", "//evil/x", "x", "/a b", "/a\n", "/\\evil", "/a#b", ""]
)
def test_a_hook_stays_on_the_containers_own_port(path: str) -> None:
    with pytest.raises(ValidationError):
        Hook(path=path)


@pytest.mark.parametrize(
    "fields",
    [
        {"profile": "http", "port": 80},
        {"profile": "process", "port": 80},
        {"profile": "open-inference"},
        {"profile": "batch", "user": "0"},
        {"profile": "batch", "user": "root"},
        {"profile": "batch", "privileged": True},
        {"profile": "batch", "image": "allowed/x@bad"},
        {"profile": "batch", "env": {"A=B": "x"}},
        {"profile": "batch", "command": ["a\x00b"]},
        {"profile": "open-inference", "port": 80, "result_file": "/x"},
    ],
)
def test_models_that_could_not_run_or_should_not_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate({"name": "m", "image": "x/y"} | fields)


def test_a_dataset_has_one_source_and_stays_inside_it() -> None:
    assert DatasetSpec(name="d", volume="v").path is None
    for fields in (
        {},
        {"volume": "v", "path": "/p"},
        {"path": "p"},
        {"path": "/p", "ready_file": "a/../../x"},
    ):
        with pytest.raises(ValidationError):
            DatasetSpec.model_validate({"name": "d"} | fields)


def test_profiles_are_the_four_of_the_design() -> None:
    assert [profile.value for profile in Profile] == ["process", "http", "open-inference", "batch"]
