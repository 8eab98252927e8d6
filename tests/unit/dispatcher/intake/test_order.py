"""The places in line that a batch of intake gives."""

from datetime import UTC, datetime, timedelta

from dispatcher.intake.order import in_order
from modelyard.contract.states import OperationState
from modelyard.store.operation_queries import KnownOperation

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: int, key: str, job_id: str = "j", *, line: int | None = None) -> KnownOperation:
    accepted = (START + timedelta(seconds=second), 0)
    return KnownOperation(key, job_id, "", OperationState.QUEUED, line, accepted)


def brought(*keys: str) -> dict[str, str | None]:
    return dict.fromkeys(keys, "j")


def test_the_brokers_order_counts() -> None:
    known = {"a": at(2, "a"), "b": at(1, "b")}
    assert in_order(brought("a", "b"), known, []) == ["a", "b"]


def test_what_was_recorded_earlier_and_not_published_goes_ahead() -> None:
    assert in_order(brought("b"), {"b": at(2, "b")}, [at(1, "a")]) == ["a", "b"]


def test_what_was_recorded_later_stays_behind() -> None:
    assert in_order(brought("a"), {"a": at(1, "a")}, [at(2, "b")]) == ["a"]


def test_it_goes_exactly_between_its_neighbours() -> None:
    known = {"a": at(1, "a"), "c": at(3, "c")}
    assert in_order(brought("a", "c"), known, [at(4, "d"), at(2, "b")]) == ["a", "b", "c"]


def test_other_jobs_do_not_matter() -> None:
    assert in_order(brought("b"), {"b": at(2, "b")}, [at(1, "a", job_id="other")]) == ["b"]


def test_before_what_nobody_has_recorded_all_of_its_job_goes_ahead() -> None:
    unpublished = [at(2, "c"), at(1, "a"), at(1, "x", job_id="other")]
    assert in_order(brought("b"), {}, unpublished) == ["a", "c", "b"]


def test_what_the_broker_has_after_all_comes_once() -> None:
    known = {"a": at(1, "a"), "b": at(2, "b")}
    assert in_order(brought("b", "a"), known, [at(1, "a")]) == ["b", "a"]


def test_what_is_brought_again_takes_nobody_along() -> None:
    """A dispatcher has recorded "a" as it came, and died."""
    again = at(5, "a", line=1)
    assert in_order(brought("a"), {"a": again}, [at(3, "d")]) == []
    assert in_order(brought("a", "b"), {"a": again}, [at(3, "d")]) == ["d", "b"]
