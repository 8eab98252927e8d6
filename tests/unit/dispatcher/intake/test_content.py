"""Content types and encodings of messages: which are read, and within which bounds."""

import gzip
import zlib

import pytest

from dispatcher.intake.content import check_content, unpacked
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (None, None),
        ("", ""),
        ("application/json", None),
        ("Application/JSON; charset=UTF-8", "utf-8"),
        ('application/json; charset="utf-8"', "identity"),
        ("application/json", "gzip"),
        ("application/json", "X-GZIP"),
    ],
)
def test_json_is_read_as_it_is_or_in_gzip(content_type: str | None, encoding: str | None) -> None:
    check_content(content_type, encoding)


@pytest.mark.parametrize(
    ("content_type", "encoding", "named"),
    [
        ("text/plain", None, "text/plain"),
        ("application/x-python-serialize", "binary", "application/x-python-serialize"),
        ("application/json; charset=utf-16", None, "utf-16"),
        ("application/json", "deflate", "deflate"),
        ("application/json", "gzip, gzip", "gzip, gzip"),
        ("application/json", "zstd", "zstd"),
    ],
)
def test_any_other_is_refused_by_its_name(
    content_type: str, encoding: str | None, named: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_content(content_type, encoding)
    assert refused.value.code is ErrorCode.UNSUPPORTED_MEDIA_TYPE
    assert named in refused.value.message


def test_gzip_of_one_member_or_several_is_unpacked() -> None:
    assert unpacked(gzip.compress(b"[1]"), "gzip") == b"[1]"
    assert unpacked(gzip.compress(b"[1,") + gzip.compress(b"2]"), "gzip") == b"[1,2]"
    assert unpacked(gzip.compress(b" " * MAX_BATCH_BYTES), "gzip") == b" " * MAX_BATCH_BYTES
    assert unpacked(b"[1]", None) == b"[1]"


def test_a_bomb_is_refused_before_it_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    real = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._reader = real(wbits)

        def decompress(self, body: bytes, most: int) -> bytes:
            nonlocal made
            part = self._reader.decompress(body, most)
            made += len(part)
            return part

        @property
        def eof(self) -> bool:
            return self._reader.eof

        @property
        def unused_data(self) -> bytes:
            return self._reader.unused_data

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    one_member = gzip.compress(bytes(64 << 20))
    for bomb in (one_member, gzip.compress(bytes(1 << 20)) * 20):
        made = 0
        with pytest.raises(InvalidRequestError) as refused:
            unpacked(bomb, "gzip")
        assert refused.value.code is ErrorCode.BODY_TOO_LARGE
        assert made == MAX_BATCH_BYTES + 1


NO_GZIP = {
    "nothing": b"",
    "plain": b"[1]",
    "too many members": gzip.compress(b" ") * 65,
    "cut off": gzip.compress(b"[1]")[:-3],
    "more behind it": gzip.compress(b"[1]") + b"more",
    "zlib": zlib.compress(b"1"),
}


@pytest.mark.parametrize("body", NO_GZIP.values(), ids=NO_GZIP)
def test_what_is_not_gzip_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        unpacked(body, "gzip")
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert "gzip" in refused.value.message
