"""What a JSON text may hold is counted before anything is made of it."""

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.contract import json_bounds, strict_json
from modelyard.contract.errors import ErrorCode, InvalidRequestError
from modelyard.contract.json_bounds import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_NAMES,
    JsonLimits,
    check_bounds,
    may_hold_unusual_numbers,
)
from modelyard.contract.strict_json import parse_json
from tests.support.large_bodies import FILLS, MIB, many_names

ROOM = 8 * MIB

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab{}[],:"\\é'), inner),
    max_leaves=40,
)


def names_in(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(names_in, value.values()))
    return sum(map(names_in, value)) if isinstance(value, list) else 0


def containers_in(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) + sum(map(containers_in, inner))


@given(any_json, st.booleans(), st.sampled_from([None, 1]))
def test_what_is_within_the_limits_is_parsed_as_json_does(
    value: object,
    ascii_only: bool,  # noqa: FBT001
    indent: int | None,
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text.encode(), max_bytes=ROOM) == json.loads(text)


@given(any_json)
def test_exactly_what_stands_outside_of_strings_is_counted(value: object) -> None:
    body = json.dumps(value).encode()
    names, containers = names_in(value), containers_in(value)
    check_bounds(body, JsonLimits(names=names, containers=max(containers, MAX_DEPTH)))
    if names:
        with pytest.raises(InvalidRequestError, match=f"has {names} names"):
            check_bounds(body, JsonLimits(names=names - 1))


@pytest.mark.parametrize("fill", FILLS)
def test_a_request_of_the_largest_size_is_taken_whatever_it_consists_of(fill: str) -> None:
    body = FILLS[fill](MIB)
    assert parse_json(body, max_bytes=MIB) == json.loads(body)


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "rows"])
def test_a_batch_of_the_largest_size_is_within_the_limits(fill: str) -> None:
    check_bounds(FILLS[fill](ROOM))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: many_names(800_000)[:ROOM], f"names in its objects; at most {MAX_NAMES}"),
        (lambda: many_names(MAX_NAMES + 1), f"has {MAX_NAMES + 1} names"),
        (lambda: b"[" + b"[]," * MAX_CONTAINERS + b"1]", f"has {MAX_CONTAINERS + 1} objects"),
        (lambda: b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deeper than 64"),
        (lambda: b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "deeper than 64"),
        (lambda: b'["]",[' * 40 + b"1" + b"]]" * 40, "deeper than 64"),
    ],
    ids=["cut", "names", "containers", "lists", "objects", "brackets in strings"],
)
def test_what_is_too_much_is_refused_before_anything_is_made_of_it(
    make: Callable[[], bytes], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object, **__: object) -> None:
        pytest.fail("It was parsed.")

    body = make()
    monkeypatch.setattr("modelyard.contract.strict_json.json.loads", parsed)
    with pytest.raises(InvalidRequestError, match=said) as caught:
        parse_json(body, max_bytes=ROOM)
    assert caught.value.code is ErrorCode.INVALID_JSON


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b'"', b"\\"),
        (b"", b'"'),
        (b"", b'"\\'),
        (b"", b"1" * 199 + b" "),
        (b"", b"e0"),
        (b"e", b"0"),
        (b"", b"["),
        (b"", b"[]"),
    ],
    ids=lambda part: repr(part[:8]),
)
def test_counting_takes_a_time_that_is_linear_in_the_text(start: bytes, repeated: bytes) -> None:
    body = start + repeated * (ROOM // len(repeated))
    began = time.perf_counter()
    check_numbers = may_hold_unusual_numbers(body)
    with pytest.raises(InvalidRequestError):
        parse_json(body, max_bytes=len(body))
    assert time.perf_counter() - began < 3.0, check_numbers  # quadratic would be hours


@pytest.mark.parametrize("number", ["1e999", "-1e400", "1" * 308 + "e99", "0." + "0" * 401])
def test_a_number_that_no_double_holds_is_found_without_looking_at_each(number: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_json(f"[1, {number}]".encode(), max_bytes=ROOM)


def test_the_numbers_of_a_usual_text_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(digits: str) -> int:
        pytest.fail(f"{digits} was looked at.")

    monkeypatch.setattr(strict_json, "_bounded_int", looked)
    monkeypatch.setattr(strict_json, "_bounded_float", looked)
    assert parse_json(b"[1, -2.5e-7, 1e22, 99999999999999999999]", max_bytes=99)[1] == -2.5e-7


@given(st.text('"\\a[\n', max_size=60))
def test_a_string_is_read_once_also_if_it_does_not_end(text: str) -> None:
    """A search that fails after reading on begins again one byte later, which adds up."""
    body = b'"' + text.encode()
    read = json_bounds._STRING.match(body)
    assert read is not None
    assert read.end() == len(body) or body[read.end() - 1 :].startswith(b'"')


def test_a_body_whose_string_does_not_end_takes_a_time_that_is_linear_in_it() -> None:
    def seconds(size: int) -> float:
        body = b"[" * (MAX_DEPTH + 1) + b'"' + b'\\"' * size
        began = time.perf_counter()
        check_bounds(body)
        return time.perf_counter() - began

    size = 512
    assert min(seconds(16 * size) for _ in range(5)) < 64 * min(seconds(size) for _ in range(5))
