"""Which failures are tried again, and when."""

import pytest

from modelyard.contract.errors import ErrorCode
from modelyard.contract.retries import MOST_S, RETRIED_CODES, is_retried, retry_delay_s
from modelyard.contract.states import Verb

USERS_OWN = {
    ErrorCode.EXITED,
    ErrorCode.IMAGE_DENIED,
    ErrorCode.IMAGE_NOT_FOUND,
    ErrorCode.IMAGE_REFUSED,
    ErrorCode.INFERENCE_FAILED,
    ErrorCode.LOAD_FAILED,
    ErrorCode.NOT_READY,
    ErrorCode.OOM_KILLED,
    ErrorCode.TIMED_OUT,
    ErrorCode.CANCELLED,
}


@pytest.mark.parametrize("code", sorted(USERS_OWN))
def test_what_would_fail_again_is_not_tried_again(code: ErrorCode) -> None:
    assert not any(is_retried(verb, code) for verb in Verb)


@pytest.mark.parametrize("code", sorted(RETRIED_CODES))
def test_failures_of_the_infrastructure_are(code: ErrorCode) -> None:
    assert is_retried(Verb.DEPLOY_CREATE, code)


def test_an_inference_that_may_have_run_is_not_run_twice() -> None:
    assert not is_retried(Verb.INFER, ErrorCode.WORKER_INTERRUPTED)
    assert not is_retried(Verb.INFER, ErrorCode.HOST_LOST)
    assert is_retried(Verb.INFER, ErrorCode.ENGINE_UNAVAILABLE)


def test_rests_double_up_to_a_minute_and_are_never_the_same_for_all() -> None:
    shortest = [retry_delay_s(n, lambda low, _: low) for n in range(1, 9)]
    longest = [retry_delay_s(n, lambda _, high: high) for n in range(1, 9)]
    assert longest == [1, 2, 4, 8, 16, 32, 60, 60]
    assert shortest == [whole / 2 for whole in longest]
    assert retry_delay_s(10_000) <= MOST_S
