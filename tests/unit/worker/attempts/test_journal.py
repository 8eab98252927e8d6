"""The journal of begun attempts: what it tells the next worker, and when it tells nothing."""

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import HostCommand, OperationReport
from modelyard.contract.states import OperationState, Verb
from tests.support.worker.harness import VerbHarness
from worker.attempts.journal import SLOT_BYTES, AttemptJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "attempts"


def commands(count: int) -> list[HostCommand]:
    harness = VerbHarness()
    return [
        harness.command(
            Verb.INFER, operation_id=new_operation_id(), job=f"job-{one}", epoch=one + 1
        )
        for one in range(count)
    ]


def report_of(command: HostCommand) -> OperationReport:
    return OperationReport(
        operation_id=command.operation_id,
        epoch=command.epoch,
        seq=1,
        job_id=command.job_id,
        generation=command.generation,
        state=OperationState.RUNNING,
    )


def used(path: Path) -> AttemptJournal:
    """Return a journal that its worker has taken over and announced."""
    journal = AttemptJournal(path)
    journal.take_over()
    journal.announced()
    return journal


def test_the_next_worker_knows_what_was_begun_and_not_reported(path: Path) -> None:
    first, second, third = commands(3)
    with closing(used(path)) as journal:
        assert journal.record([first, second])
        assert journal.record([third])
        journal.reported([report_of(second)])
    with closing(AttemptJournal(path)) as journal:
        assert journal.take_over()
        assert journal.begun == [report_of(first), report_of(third)]
        journal.reported(journal.begun)
        assert journal.begun == []
    with closing(AttemptJournal(path)) as journal:
        assert journal.take_over()
        assert journal.begun == []


def test_the_next_incarnation_of_the_same_process_knows_it_too(path: Path) -> None:
    [one] = commands(1)
    with closing(used(path)) as journal:
        assert journal.record([one])
        assert journal.begun == []
        assert journal.take_over()
        assert journal.begun == [report_of(one)]


def test_what_is_not_known_stays_so_until_it_was_announced(path: Path) -> None:
    for _ in range(2):
        with closing(AttemptJournal(path)) as journal:
            assert not journal.take_over(), "no worker has written it yet"
    used(path).close()
    with closing(AttemptJournal(path)) as journal:
        assert journal.take_over()


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:SLOT_BYTES] + b"one two".ljust(SLOT_BYTES, b"\0"))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: SLOT_BYTES + 20])


def of_another_machine_boot(path: Path) -> None:
    header = path.read_bytes()[:SLOT_BYTES].rstrip(b"\0\n")
    path.write_bytes((header[:-1] + b"!\n").ljust(SLOT_BYTES, b"\0"))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [damaged, cut_off, of_another_machine_boot, removed])
def test_a_journal_that_says_nothing_is_begun_anew(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    one, another = commands(2)
    with closing(used(path)) as journal:
        journal.record([one])
    spoil(path)
    with closing(AttemptJournal(path)) as journal:
        assert not journal.take_over()
        assert journal.begun == []
        journal.announced()
        assert journal.record([another])
    with closing(AttemptJournal(path)) as journal:
        assert journal.take_over()
        assert journal.begun == [report_of(another)]


def test_while_another_process_holds_it_nothing_is_known_or_written(path: Path) -> None:
    one, another = commands(2)
    with closing(AttemptJournal(path)) as waiting:
        with closing(used(path)) as journal:
            journal.record([one])
            assert not waiting.take_over()
            waiting.announced()
            assert not waiting.record([another])
        assert waiting.record([another]), "the other one is gone"
    with closing(AttemptJournal(path)) as journal:
        assert journal.take_over()
        assert {it.operation_id for it in journal.begun} == {
            one.operation_id,
            another.operation_id,
        }


def test_without_a_folder_nothing_is_known_or_written(tmp_path: Path) -> None:
    for missing in (None, tmp_path / "missing" / "attempts"):
        with closing(AttemptJournal(missing)) as journal:
            assert not journal.take_over()
            journal.announced()
            assert not journal.record(commands(1))


def test_an_attempt_that_could_not_be_written_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, another = commands(2)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(used(path)) as journal:
        monkeypatch.setattr(os, "pwrite", full)
        assert not journal.record([one])
        monkeypatch.undo()
        assert journal.record([another])
        assert journal.take_over()
        assert journal.begun == [report_of(another)]


def test_the_file_grows_no_longer_than_what_is_open_at_once(path: Path) -> None:
    with closing(used(path)) as journal:
        for _ in range(50):
            some = commands(3)
            assert journal.record(some)
            journal.reported([report_of(one) for one in some])
    assert path.stat().st_size == 4 * SLOT_BYTES


def test_an_entry_is_never_longer_than_its_slot(path: Path) -> None:
    longest = VerbHarness().command(Verb.INFER, job="j" * 128, epoch=(1 << 63) - 1)
    longest = longest.model_copy(update={"generation": (1 << 63) - 1})
    with closing(used(path)) as journal:
        assert journal.record([longest])
        assert journal.take_over()
        assert journal.begun == [report_of(longest)]
    assert path.stat().st_size == 2 * SLOT_BYTES
