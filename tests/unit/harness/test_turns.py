"""Turns of the processes that run tests with servers."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers.turns import turn


class Someone:
    """Takes a turn in a thread, and keeps it until told."""

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self.has_it = threading.Event()
        self.end = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(folder,), kwargs={"alone": alone})
        self._thread.start()

    def _take(self, folder: Path, *, alone: bool) -> None:
        with turn(folder, alone=alone):
            self.has_it.set()
            self.end.wait(10)

    def leave(self) -> None:
        self.end.set()
        self._thread.join(10)


Arrives = Callable[..., Someone]


@pytest.fixture
def arrives(tmp_path: Path, request: pytest.FixtureRequest) -> Arrives:
    def made(*, alone: bool = False) -> Someone:
        one = Someone(tmp_path, alone=alone)
        request.addfinalizer(one.leave)
        return one

    return made


def test_turns_run_side_by_side(arrives: Arrives) -> None:
    first, second = arrives(), arrives()
    assert first.has_it.wait(10)
    assert second.has_it.wait(10)


def test_nobody_has_a_turn_beside_one_that_is_alone(arrives: Arrives) -> None:
    alone = arrives(alone=True)
    assert alone.has_it.wait(10)
    other = arrives()
    assert not other.has_it.wait(0.1)
    alone.leave()
    assert other.has_it.wait(10)


def test_whoever_waits_to_be_alone_comes_before_those_who_arrive_later(arrives: Arrives) -> None:
    first = arrives()
    assert first.has_it.wait(10)
    alone = arrives(alone=True)
    assert not alone.has_it.wait(0.1)
    later = arrives()
    assert not later.has_it.wait(0.1)
    first.leave()
    assert alone.has_it.wait(10)
    assert not later.has_it.wait(0.1)
    alone.leave()
    assert later.has_it.wait(10)
