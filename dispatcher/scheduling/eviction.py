"""Eviction: the cheapest models to unload, so that another one has room. Pure.

The cost of unloading a model is what it takes to have it back: the seconds of its last load, times
how often it is used. `making_room` reckons it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EXACT = 16
"""Candidates among which the cheapest set is found for certain."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model in memory that may be unloaded."""

    job_id: str
    cost: float
    frees: Mapping[str, int]
    """Bytes by resource: a device's uuid, or `memory` of the host."""


Freed = frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class _Choice:
    cost: float
    jobs: tuple[str, ...]


def cheapest(lacking: Mapping[str, int], candidates: Sequence[Candidate]) -> tuple[str, ...] | None:
    """Return the jobs to unload so that everything that is lacking is freed, at the least cost.

    `lacking` has bytes by resource. None if all candidates together do not free enough. Of sets
    with equal cost the one with fewer jobs is taken, then the first by name.
    """
    wanted = {name: amount for name, amount in lacking.items() if amount > 0}
    if not wanted:
        return ()
    helping = sorted(
        (one for one in candidates if any(one.frees.get(name, 0) > 0 for name in wanted)),
        key=lambda one: (one.cost, one.job_id),
    )
    if not _enough(wanted, helping):
        return None
    if len(helping) > EXACT and not _enough(wanted, helping[:EXACT]):
        return _greedy(wanted, helping)
    return _exact(wanted, helping[:EXACT])


def _exact(wanted: dict[str, int], helping: Sequence[Candidate]) -> tuple[str, ...] | None:
    """Search all sets of candidates, which are sorted by cost, as far as they may be the best."""
    # What all candidates behind a position free together: without it, going on is pointless.
    behind: list[dict[str, int]] = [dict.fromkeys(wanted, 0)]
    for one in reversed(helping):
        last = behind[-1]
        behind.append({name: last[name] + one.frees.get(name, 0) for name in wanted})
    behind.reverse()
    best: _Choice | None = None

    def search(
        position: int, left: dict[str, int], chosen: _Choice, skipped: frozenset[Freed]
    ) -> None:
        nonlocal best
        if all(amount <= 0 for amount in left.values()):
            if best is None or _order(chosen) < _order(best):
                best = chosen
            return
        if best is not None and chosen.cost > best.cost:
            return
        if any(behind[position][name] < amount for name, amount in left.items()):
            return
        one = helping[position]
        same = frozenset(one.frees.items())
        if same in skipped:  # a cheaper one that frees the same was not taken either
            search(position + 1, left, chosen, skipped)
            return
        taken = {name: amount - one.frees.get(name, 0) for name, amount in left.items()}
        more = _Choice(chosen.cost + one.cost, (*chosen.jobs, one.job_id))
        search(position + 1, taken, more, skipped)
        search(position + 1, left, chosen, skipped | {same})

    search(0, wanted, _Choice(0.0, ()), frozenset())
    return best.jobs if best is not None else None


def _order(choice: _Choice) -> tuple[float, int, tuple[str, ...]]:
    return choice.cost, len(choice.jobs), choice.jobs


def _enough(wanted: Mapping[str, int], some: Sequence[Candidate]) -> bool:
    return all(
        sum(one.frees.get(name, 0) for one in some) >= amount for name, amount in wanted.items()
    )


def _greedy(wanted: Mapping[str, int], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Take the cheapest ones until it is enough, then give back those that are not needed."""
    chosen: list[Candidate] = []
    for one in candidates:
        if _enough(wanted, chosen):
            break
        chosen.append(one)
    for one in sorted(chosen, key=lambda it: -it.cost):
        without = [other for other in chosen if other is not one]
        if _enough(wanted, without):
            chosen = without
    return tuple(one.job_id for one in chosen)
