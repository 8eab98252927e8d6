"""What the tests' servers need is there before pytest-xdist gives out the first test."""

import pytest

from tests import conftest


def test_everything_is_installed_before_a_process_reports_its_tests(
    pytestconfig: pytest.Config,
) -> None:
    called = pytestconfig.hook.pytest_collection_finish.get_hookimpls()
    assert called[-1].function is conftest.pytest_collection_finish  # the last is called first
