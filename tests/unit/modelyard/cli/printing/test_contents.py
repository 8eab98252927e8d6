"""Results of any content are printed: the gateway does not check large ones."""

import json
import sys

import pytest

from modelyard.cli.printing.output import Output
from modelyard.client import Content
from modelyard.contract.content.media_types import JSON_TYPE

NO_JSON = {
    "cut off": b'{"a": [1, 2',
    "not UTF-8": b'["\xff"]',
    "nested too deep": b"[" * 100_000 + b"]" * 100_000,
    "a number without end": b"9" * 5_000,
}
EACH = pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
Captured = pytest.CaptureFixture[bytes]


def printed(content: bytes, capture: Captured, *, as_json: bool = False) -> tuple[bytes, bytes]:
    Output(as_json=as_json).content(Content(JSON_TYPE, content))
    return capture.readouterr()


@EACH
def test_what_is_no_json_goes_into_a_pipe_as_it_is(content: bytes, capsysbinary: Captured) -> None:
    assert printed(content, capsysbinary) == (content, b"")


@EACH
def test_what_is_no_json_is_named_on_a_terminal(
    content: bytes, capsysbinary: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out, err = printed(content, capsysbinary)
    assert out == b""
    assert b"The result is application/json, " in err
    assert b"--output FILE" in err


@EACH
def test_what_is_no_json_is_described_for_machines(content: bytes, capsysbinary: Captured) -> None:
    out, _ = printed(content, capsysbinary, as_json=True)
    assert json.loads(out)["result_bytes"] == len(content)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_text_with_half_of_a_character_is_printed_as_it_came(
    capsysbinary: Captured, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    out, _ = printed(b'"\\ud800"', capsysbinary)
    assert out == b'"\\ud800"\n'


def test_json_is_printed_as_json(capsysbinary: Captured) -> None:
    assert printed('{"a": "ä"}'.encode(), capsysbinary) == ('{"a": "ä"}\n'.encode(), b"")
