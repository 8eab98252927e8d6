"""I6's checker: it finds every history that the table does not allow."""

import pytest

from modelyard.contract.states import JobState, OperationState
from tests.statemachine.watching import Watching
from tests.support.invariants.histories import (
    Fact,
    JobLook,
    wrong_between,
    wrong_between_jobs,
    wrong_with,
)

Q, D, R = OperationState.QUEUED, OperationState.DISPATCHED, OperationState.RUNNING
S, F, J = OperationState.SUCCEEDED, OperationState.FAILED, OperationState.REJECTED

History = list[tuple[int, int, OperationState]]


def wrong(history: History, now: OperationState) -> list[str]:
    return list(wrong_with("op", [Fact(*fact) for fact in history], now))


@pytest.mark.parametrize(
    ("history", "now"),
    [
        ([(0, 0, Q), (1, 0, D), (1, 1, R), (1, 2, R), (1, 3, S)], S),
        ([(0, 0, Q), (1, 0, D), (1, 3, S)], S),
        ([(0, 0, Q), (1, 2, R), (1, 3, F)], F),
        ([(0, 0, J)], J),
        ([(0, 0, Q), (1, 0, D), (1, 0, Q), (2, 0, D), (2, 1, S)], S),
        ([(0, 0, Q), (1, 0, Q), (2, 0, D), (2, 1, S)], S),
        ([(0, 0, Q), (1, 0, D), (1, 2, R), (1, 2, Q), (1, 2, F)], F),
        ([(1, 3, S), (1, 1, R), (1, 0, D), (0, 0, Q)], S),
        ([], S),
    ],
)
def test_a_path_of_the_table_is_right_in_whatever_order_it_was_told(
    history: History, now: OperationState
) -> None:
    facts = [fact for fact in history if fact != (1, 2, F)]
    assert wrong(facts, now) == []


@pytest.mark.parametrize(
    ("history", "now", "word"),
    [
        ([(1, 3, S), (1, 3, F)], S, "more than one end"),
        ([(1, 3, S), (2, 1, F)], S, "more than one end"),
        ([(1, 3, S)], F, "its events say"),
        ([(1, 0, D), (1, 3, S), (1, 4, R)], S, "went from"),
        ([(1, 3, S), (2, 0, D)], S, "went from"),
        ([(1, 0, D), (1, 2, Q), (1, 5, R), (2, 0, D)], R, "went from"),
        ([(1, 0, D), (2, 0, Q)], Q, "went from"),
    ],
)
def test_what_the_table_does_not_allow_is_found(
    history: History, now: OperationState, word: str
) -> None:
    assert any(word in sentence for sentence in wrong(history, now))


@pytest.mark.parametrize(
    ("earlier", "later", "word"),
    [
        (Fact(1, 3, S), Fact(1, 3, F), "had ended"),
        (Fact(2, 0, D), Fact(1, 4, R), "from epoch 2 to 1"),
        (Fact(1, 4, R), Fact(1, 3, R), "from seq 4 to 3"),
    ],
)
def test_a_record_that_falls_back_is_found(earlier: Fact, later: Fact, word: str) -> None:
    assert word in (wrong_between("op", earlier, later) or "")


def test_a_record_that_goes_on_is_right() -> None:
    assert wrong_between("op", Fact(1, 4, R), Fact(2, 0, D)) is None
    assert wrong_between("op", Fact(1, 4, S), Fact(1, 4, S)) is None


C, L, T = JobState.CREATED, JobState.LOADED, JobState.TERMINATED


@pytest.mark.parametrize(
    ("earlier", "later", "word"),
    [
        (JobLook(4, 2, L), JobLook(3, 2, L), "fell back"),
        (JobLook(4, 2, L), JobLook(5, 1, L), "fell back"),
        (JobLook(4, 2, T), JobLook(5, 2, L), "from TERMINATED to LOADED, version 4 to 5"),
        (JobLook(4, 2, C), JobLook(4, 2, L), "from CREATED to LOADED, version 4 to 4"),
    ],
)
def test_a_job_whose_record_went_where_no_write_leads_is_found(
    earlier: JobLook, later: JobLook, word: str
) -> None:
    assert word in (wrong_between_jobs("j", earlier, later) or "")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (JobLook(4, 2, L), JobLook(4, 2, L)),
        (JobLook(4, 2, L), JobLook(5, 3, L)),
        (JobLook(4, 2, C), JobLook(5, 2, L)),
        (JobLook(4, 2, T), JobLook(6, 3, L)),
    ],
)
def test_a_job_that_goes_on_is_right(earlier: JobLook, later: JobLook) -> None:
    assert wrong_between_jobs("j", earlier, later) is None


@pytest.mark.parametrize(
    ("counted", "found"),
    [({}, True), ({"failures": 1}, False), ({"returns": 1}, False)],
    ids=["nothing", "a failure", "a return"],
)
def test_a_return_to_the_queue_that_nothing_counts_is_found(
    counted: dict[str, int], *, found: bool
) -> None:
    watching = Watching()
    before = {"_id": "op", "epoch": 1, "seq": 0, "state": R, "open": True}
    watching.on_write("operations", before, before | {"state": Q} | counted)
    assert bool(watching.wrong) is found
