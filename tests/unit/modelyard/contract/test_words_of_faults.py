"""What a fault in a request or an entry says: words for people, never a pattern or Python's."""

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from modelyard.contract.access.api_keys import KeyName
from modelyard.contract.catalog import values
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.content.media_types import MediaType
from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.ids import Id, InputId, OperationId
from modelyard.contract.messages import JobRequest, Key, MetadataKey
from modelyard.contract.validation import error_list, parse_request

_NOT_FOR_PEOPLE = ("pattern", "tuple", "dictionary", "instance of", "inputs are not permitted")


def _faults(kind: type[BaseModel], value: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(value)
    return {one["pointer"]: one["message"] for one in error_list(refused.value)}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Id, "a b"),
        (OperationId, "7"),
        (InputId, "7"),
        (Key, "a b"),
        (MetadataKey, ""),
        (MediaType, "png"),
        (KeyName, "é"),
        (values.Text, "\0"),
        (values.AbsolutePath, "data"),
        (values.UrlPath, "load"),
        (values.EnvName, "1A"),
        (values.Label, " "),
        (values.HeaderName, "X:"),
        (values.HeaderValue, " x"),
        (values.ServedName, "/x"),
        (values.VolumeName, "/x"),
        (values.FileInside, "/x"),
        (values.User, "root"),
        (values.ImageName, "Not An Image"),
    ],
)
def test_a_text_that_breaks_a_pattern_is_told_in_words(kind: Any, wrong: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(wrong)
    [fault] = error_list(refused.value)
    assert fault["message"].startswith("must be ")
    assert not any(one in fault["message"] for one in _NOT_FOR_PEOPLE)


def test_a_fault_in_an_entry_says_what_is_expected() -> None:
    entry = {
        "name": "x 1",
        "image": "Not An Image",
        "profile": "batch",
        "command": "python3 x",
        "env": [],
        "user": "root",
        "privileged": True,
    }
    assert _faults(ModelSpec, entry) == {
        "/name": "must be 1 to 128 letters, digits, `_`, `.` and `-`, with a letter or digit first",
        "/image": "must be the name of an image such as registry.example/team/model:3, with "
        "lower-case letters in its repository, of at most 512 characters",
        "/command": "must be a list",
        "/env": "must be a JSON object",
        "/user": "must be numbers, `uid` or `uid:gid`, and neither may be 0, which is root",
        "/privileged": "is not known",
    }
    assert _faults(DatasetSpec, {"name": "d", "path": "x/y"}) == {
        "/path": "must be an absolute path such as /srv/data, of at most 4,096 characters"
    }


def test_a_user_id_that_docker_does_not_take_still_says_its_limit() -> None:
    entry = {"name": "x", "image": "x", "profile": "batch", "user": "9999999999"}
    assert _faults(ModelSpec, entry) == {"/user": f"a user and a group id are at most {2**31 - 1}"}


@pytest.mark.parametrize("body", [None, [], "text", 7])
def test_a_request_that_is_no_object_is_told_so(body: Any) -> None:
    assert _faults(JobRequest, body) == {"": "must be a JSON object"}
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(body)
    assert refused.value.detail["errors"] == [{"pointer": "", "message": "must be a JSON object"}]
