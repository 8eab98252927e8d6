"""The places in line that a batch of intake gives."""

from datetime import UTC, datetime, timedelta

from dispatcher.intake.order import in_order, overtaking
from modelyard.contract.states import OperationState
from modelyard.store.operation_queries import KnownOperation

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(
    second: int,
    key: str,
    job_id: str = "j",
    *,
    line: int | None = None,
    unpublished: bool = False,
) -> KnownOperation:
    accepted = (START + timedelta(seconds=second), 0)
    return KnownOperation(key, job_id, "", OperationState.QUEUED, line, accepted, unpublished)


def brought(*keys: str) -> dict[str, str | None]:
    return dict.fromkeys(keys, "j")


def test_the_brokers_order_counts() -> None:
    known = {"a": at(2, "a"), "b": at(1, "b")}
    assert in_order(brought("a", "b"), known, []) == ["a", "b"]


def test_what_was_recorded_earlier_and_never_brought_goes_ahead() -> None:
    assert in_order(brought("b"), {"b": at(2, "b")}, [at(1, "a")]) == ["a", "b"]


def test_what_was_recorded_later_waits_for_its_own_message() -> None:
    assert in_order(brought("a"), {"a": at(1, "a")}, [at(2, "b")]) == ["a"]


def test_it_goes_exactly_between_its_neighbours() -> None:
    known = {"a": at(1, "a"), "c": at(3, "c")}
    assert in_order(brought("a", "c"), known, [at(4, "d"), at(2, "b")]) == ["a", "b", "c"]


def test_other_jobs_do_not_matter() -> None:
    assert in_order(brought("b"), {"b": at(2, "b")}, [at(1, "a", job_id="other")]) == ["b"]


def test_before_what_is_not_recorded_yet_nothing_goes_ahead() -> None:
    assert in_order(brought("b"), {}, [at(1, "a")]) == ["b"]


def test_what_the_broker_did_not_take_goes_ahead_of_what_nobody_recorded() -> None:
    unbrought = [at(1, "a", unpublished=True), at(1, "x", job_id="other", unpublished=True)]
    assert in_order(brought("b"), {}, unbrought) == ["a", "b"]


def test_what_is_brought_again_takes_nobody_along() -> None:
    """A dispatcher has recorded "a" as it came and died; "b" and "c" lie behind it in the queue."""
    again = at(5, "a", line=1)
    unbrought = [at(2, "c"), at(3, "d", unpublished=True)]
    assert in_order(brought("a"), {"a": again}, unbrought) == []
    assert in_order(brought("a", "b"), {"a": again}, unbrought) == ["d", "b"]


# --- which jobs of a batch need a closer look ---


def test_an_operation_that_was_recorded_earlier_is_overtaken() -> None:
    assert overtaking(brought("b"), {"b": at(2, "b")}, [at(1, "a")]) == {"j"}


def test_one_that_was_recorded_later_is_not() -> None:
    assert overtaking(brought("a"), {"a": at(1, "a")}, [at(2, "b")]) == set()


def test_one_that_was_never_published_is_overtaken_by_what_nobody_has_recorded() -> None:
    published, unpublished = at(1, "a"), at(1, "b", unpublished=True)
    assert overtaking(brought("c"), {}, [published]) == set()
    assert overtaking(brought("c"), {}, [published, unpublished]) == {"j"}


def test_only_the_job_of_the_overtaken_one_needs_a_closer_look() -> None:
    batch: dict[str, str | None] = {"b": "j", "y": "other", "r": None}
    known = {"b": at(2, "b"), "y": at(2, "y", job_id="other")}
    assert overtaking(batch, known, [at(1, "x", job_id="other")]) == {"other"}


def test_one_operation_of_a_job_that_overtakes_is_enough() -> None:
    known = {"a": at(1, "a"), "c": at(3, "c")}
    assert overtaking(brought("a", "c"), known, [at(2, "b")]) == {"j"}
