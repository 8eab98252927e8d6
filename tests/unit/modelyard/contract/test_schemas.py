"""The JSON Schemas in docs/schemas/: they say what the code says."""

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from modelyard.contract import schemas
from modelyard.contract.messages import JobRequest, Submission, SubmittedRequest
from modelyard.contract.states import Verb

REQUEST = {"job_id": "j-1", "operation_type": "DEPLOY_CREATE", "model": "m-131"}


def test_the_schemas_in_the_repository_are_those_of_the_code() -> None:
    assert schemas.drifted(schemas.FOLDER) == []


@pytest.mark.parametrize("name", schemas.PUBLIC)
def test_each_schema_is_one_of_its_dialect_and_has_an_id(name: str) -> None:
    made = schemas.schema(name)
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["$id"] == f"urn:modelyard:schema:{name}:1"


def test_a_changed_a_missing_and_a_stray_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schemas.main(["--folder", str(tmp_path)]) == 0
    assert schemas.main(["--check", "--folder", str(tmp_path)]) == 0
    (tmp_path / "event.json").unlink()
    (tmp_path / "job-view.json").write_text("{}")
    (tmp_path / "stray.json").write_text("{}")
    assert schemas.main(["--check", "--folder", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    for name in ("event.json", "job-view.json", "stray.json"):
        assert str(tmp_path / name) in told
    assert "host-view.json" not in told
    schemas.main(["--folder", str(tmp_path)])
    assert schemas.drifted(tmp_path) == []


def test_the_request_schema_takes_what_the_gateway_takes_and_refuses_what_it_refuses() -> None:
    validator = jsonschema.Draft202012Validator(schemas.schema("job-request"))
    assert validator.is_valid(REQUEST)
    for wrong in (
        REQUEST | {"job_id": "a/b"},
        REQUEST | {"operation_type": "DANCE"},
        REQUEST | {"unknown": 1},
        REQUEST | {"priority": 101},
        {"job_id": "j-1"},
    ):
        assert not validator.is_valid(wrong), wrong


def test_a_submission_follows_its_schema() -> None:
    request = JobRequest(job_id="j-1", operation_type=Verb.INFER, input={"x": [1]})
    submitted = SubmittedRequest(
        operation_id="01890000-0000-7000-8000-000000000000", request=request
    )
    sent = json.loads(Submission(requests=(submitted,)).model_dump_json())
    jsonschema.validate(sent, schemas.schema("submission"), jsonschema.Draft202012Validator)
