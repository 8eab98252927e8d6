import pytest
from pydantic import ValidationError

from modelyard.contract.content.media_types import (
    UNKNOWN_TYPE,
    file_ending,
    is_json,
    is_text,
    media_type_of,
)
from modelyard.contract.content.results import ResultContent


@pytest.mark.parametrize(
    ("header", "media_type"),
    [
        ("", "application/json"),
        (" image/png ", "image/png"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ('multipart/mixed; boundary="a b"', 'multipart/mixed; boundary="a b"'),
        ("image", UNKNOWN_TYPE),
        ("image/png\r\nSet-Cookie: a=b", UNKNOWN_TYPE),
        ("text/html, text/plain", UNKNOWN_TYPE),
        ("image/png; " + "a" * 300, UNKNOWN_TYPE),
        ("tëxt/plain", UNKNOWN_TYPE),
    ],
)
def test_what_is_no_media_type_is_bytes_of_which_nothing_is_known(
    header: str, media_type: str
) -> None:
    assert media_type_of(header) == media_type


@pytest.mark.parametrize(
    ("media_type", "json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/vnd.api+json", True),
        ("text/json", True),
        ("application/jsonl", False),
        ("text/html", False),
    ],
)
def test_json_is_known_by_its_type(media_type: str, *, json: bool) -> None:
    assert is_json(media_type) is json


def test_people_read_text_and_open_files_by_their_ending() -> None:
    assert is_text("text/csv; header=present")
    assert not is_text("image/png")
    assert [file_ending(one) for one in ("image/png", "text/html", "x/y")] == ["png", "bin", "bin"]


def test_bytes_are_base64_in_json_only() -> None:
    sent = ResultContent(content_type="image/png", content=b"\x89PNG")
    assert sent.model_dump(mode="json") == {"content_type": "image/png", "content": "iVBORw=="}
    assert ResultContent.model_validate_json(sent.model_dump_json()) == sent
    assert ResultContent.model_validate(sent.model_dump(mode="json")) == sent
    with pytest.raises(ValidationError, match="base64"):
        ResultContent.model_validate({"content_type": "image/png", "content": "ü"})
    with pytest.raises(ValidationError, match="content_type"):
        ResultContent(content_type="image/png\r\nX: y", content=b"")
