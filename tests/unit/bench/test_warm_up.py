"""How each kind of measurement is warmed up, and how its window is sized."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import rounds
from bench.jobs import LoadedJobs
from bench.load import BATCH
from bench.measuring import Measuring, Section, in_pairs_of_batches
from bench.rounds import FULL, Rounds
from bench.warm_up import FIRST, MOST_RUNS, warm_rate
from deploy.local.progress import Progress

WARM = {
    "batches": 900.0,
    "taskiq": 700.0,
    "celery": 300.0,
    "singles": 600.0,
    "accepted": 1_500.0,
    "bare": 4_000.0,
}
COLD = 200.0


class ScriptedMeasuring:
    """Measures at a rate of its own for each kind, and slower the first time."""

    def __init__(self) -> None:
        self.peers = [SimpleNamespace(name=name) for name in ("taskiq", "celery")]
        self.sections: list[Section] = []
        self.runs: dict[str, list[Section]] = {}
        self.one_at_a_time_runs: dict[str, list[int]] = {}
        self.rates: list[tuple[float, float]] = []

    def begin(self) -> None:
        """Forget the warm-up."""
        self.sections.clear()

    def of_kind(self, name: str, operations: int) -> Section:
        """Return what a run of one kind measures."""
        before = self.runs.setdefault(name, [])
        rate = WARM[name] if before else COLD
        section = Section("any", name, operations, operations / rate, {}, {})
        before.append(section)
        self.sections.append(section)
        return section

    async def batches(self, operations: int) -> Section:
        return self.of_kind("batches", operations)

    async def singles(self, operations: int) -> Section:
        return self.of_kind("singles", operations)

    async def accepted(self, operations: int) -> Section:
        return self.of_kind("accepted", operations)

    async def bare(self, operations: int) -> Section:
        return self.of_kind("bare", operations)

    async def peer_throughput(self, peer: Any, operations: int) -> Section:
        return self.of_kind(peer.name, operations)

    async def peer_one_at_a_time(self, peer: Any, operations: int) -> None:
        self.one_at_a_time_runs.setdefault(peer.name, []).append(operations)

    async def one_at_a_time(self, operations: int) -> None:
        self.one_at_a_time_runs.setdefault("modelyard", []).append(operations)

    async def at_rate(self, per_s: float, seconds: float) -> None:
        self.rates.append((per_s, seconds))


@pytest.fixture
async def measured(monkeypatch: pytest.MonkeyPatch) -> ScriptedMeasuring:
    """Give the test all that a full run has measured."""

    async def model_rate(*_: object) -> float:
        return 10_000.0

    async def model_latencies(*_: object) -> list[float]:
        return [0.001]

    monkeypatch.setattr(rounds, "model_rate", model_rate)
    monkeypatch.setattr(rounds, "model_latencies", model_latencies)
    measuring = ScriptedMeasuring()
    jobs = LoadedJobs(["j"], ["http://127.0.0.1:1/"])
    await Rounds(cast("Measuring", measuring), jobs, FULL, Progress()).run()
    return measuring


@pytest.mark.parametrize("name", list(WARM))
async def test_each_kind_is_warmed_up_and_measured_for_about_its_seconds(
    measured: ScriptedMeasuring, name: str
) -> None:
    cold, *warming, _, _, last = measured.runs[name]
    aimed_s = FULL.accepted_s if name in {"accepted", "bare"} else FULL.seconds

    assert cold.operations == FIRST
    assert warming
    assert last.seconds == pytest.approx(aimed_s, rel=0.05)


async def test_latencies_are_warmed_up_too_and_the_rate_is_that_of_the_round(
    measured: ScriptedMeasuring,
) -> None:
    aimed = [FULL.one_at_a_time] * FULL.rounds

    for name in ("taskiq", "celery", "modelyard"):
        warming, *rest = measured.one_at_a_time_runs[name]
        assert (warming > 0, rest) == (True, aimed)
    assert len(measured.rates) == 1 + FULL.rounds
    assert measured.rates[-1] == (WARM["singles"] / 2, FULL.seconds)


async def test_only_the_rounds_are_in_what_was_measured(measured: ScriptedMeasuring) -> None:
    assert len(measured.sections) == FULL.rounds * len(WARM)


@pytest.mark.parametrize(
    ("rates", "runs"),
    [
        ([200, 900, 900, 900], 3),  # the second run was sized by the cold one and is too short
        ([900, 900], 2),
        ([200, 900, 2_000, 9_000], 1 + MOST_RUNS),  # it gets faster all the time
    ],
)
async def test_a_kind_is_warm_once_a_run_has_taken_its_time(rates: list[int], runs: int) -> None:
    made: list[Section] = []

    async def measure(operations: int) -> Section:
        made.append(Section("any", "any", operations, operations / rates[len(made)], {}, {}))
        return made[-1]

    assert await warm_rate(measure, 2.0) == pytest.approx(rates[runs - 1])
    assert len(made) == runs


@pytest.mark.parametrize(
    ("operations", "batches"), [(1, 2), (BATCH, 2), (3 * BATCH, 4), (6_100, 12), (6_600, 14)]
)
def test_no_batch_is_left_alone_at_the_end(operations: int, batches: int) -> None:
    assert in_pairs_of_batches(operations) == batches * BATCH
