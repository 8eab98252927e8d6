"""Which models leave memory because nobody uses them."""

from datetime import timedelta

import pytest

from modelyard.scheduling.leaving import is_idle
from modelyard.store.records import JobRecord
from tests.support.scheduling import NOW, job, spec


def loaded(seconds_ago: float, **residency: object) -> JobRecord:
    model = spec(residency={"idle_unload_s": 10.0, "min_resident_s": 0.0, **residency})
    return job(spec=model, loaded_at=NOW - timedelta(seconds=seconds_ago))


@pytest.mark.parametrize(
    ("unused_s", "resident_s", "idle"),
    [(10.0, 10.0, True), (9.9, 60.0, False), (60.0, 9.9, False), (60.0, 60.0, True)],
)
def test_a_model_is_idle_after_its_time_in_memory_and_without_use(
    unused_s: float, resident_s: float, *, idle: bool
) -> None:
    assert is_idle(loaded(resident_s), NOW, unused_s=unused_s) is idle


def test_a_model_stays_for_its_least_time_although_nobody_uses_it() -> None:
    assert not is_idle(loaded(60.0, min_resident_s=90.0), NOW, unused_s=60.0)
    assert is_idle(loaded(90.0, min_resident_s=90.0), NOW, unused_s=60.0)


def test_a_pinned_model_is_never_idle_whatever_else_its_entry_says() -> None:
    assert not is_idle(loaded(3_600.0, pinned=True), NOW, unused_s=3_600.0)


def test_a_model_without_a_time_for_it_is_never_idle() -> None:
    assert not is_idle(loaded(3_600.0, idle_unload_s=None), NOW, unused_s=3_600.0)
