"""The cheapest models to unload, against all possible sets."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.scheduling.eviction import EXACT, Candidate, cheapest

RESOURCES = ("GPU-a", "GPU-b", "memory")
AMOUNTS = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 9))
CANDIDATES = st.lists(st.tuples(st.integers(0, 9), AMOUNTS), max_size=8).map(
    lambda found: [
        Candidate(f"j{number}", float(cost), frees) for number, (cost, frees) in enumerate(found)
    ]
)


def enough(lacking: dict[str, int], some: tuple[Candidate, ...]) -> bool:
    return all(
        sum(one.frees.get(name, 0) for one in some) >= amount for name, amount in lacking.items()
    )


@given(AMOUNTS, CANDIDATES)
def test_no_other_set_costs_less(lacking: dict[str, int], candidates: list[Candidate]) -> None:
    sets = [
        some
        for size in range(len(candidates) + 1)
        for some in combinations(candidates, size)
        if enough(lacking, some)
    ]
    found = cheapest(lacking, candidates)
    if not sets:
        assert found is None
        return
    assert found is not None
    chosen = tuple(one for one in candidates if one.job_id in found)
    assert enough(lacking, chosen)
    least = min(sum(one.cost for one in some) for some in sets)
    assert sum(one.cost for one in chosen) == least
    assert all(not enough(lacking, tuple(o for o in chosen if o is not it)) or it.cost == 0
               for it in chosen)  # fmt: skip


@given(AMOUNTS, CANDIDATES)
def test_the_order_of_candidates_does_not_matter(
    lacking: dict[str, int], candidates: list[Candidate]
) -> None:
    assert cheapest(lacking, candidates) == cheapest(lacking, candidates[::-1])


def test_many_small_ones_go_if_they_cost_less_than_a_large_one() -> None:
    small = [Candidate(f"s{n}", 1.0, {"GPU-a": 2}) for n in range(4)]
    assert cheapest({"GPU-a": 7}, [Candidate("large", 5.0, {"GPU-a": 8}), *small]) == (
        "s0", "s1", "s2", "s3",
    )  # fmt: skip
    assert cheapest({"GPU-a": 7}, [Candidate("large", 3.0, {"GPU-a": 8}), *small]) == ("large",)


def test_nothing_goes_where_nothing_is_lacking() -> None:
    assert cheapest({"GPU-a": 0}, [Candidate("j", 0.0, {"GPU-a": 5})]) == ()


def test_nothing_goes_in_vain() -> None:
    assert cheapest({"GPU-a": 6, "memory": 1}, [Candidate("j", 1.0, {"GPU-a": 9})]) is None


@settings(deadline=2_000)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=EXACT, max_size=60))
def test_of_very_many_candidates_enough_go_and_none_in_vain(sizes: list[tuple[int, int]]) -> None:
    candidates = [
        Candidate(f"j{n}", float(cost), {"GPU-a": size}) for n, (cost, size) in enumerate(sizes)
    ]
    lacking = {"GPU-a": sum(size for _, size in sizes) // 2}
    found = cheapest(lacking, candidates)
    assert found is not None
    chosen = tuple(one for one in candidates if one.job_id in found)
    assert enough(lacking, chosen)
    assert not any(
        enough(lacking, tuple(other for other in chosen if other is not one)) for one in chosen
    )


def test_sixteen_candidates_that_all_differ_are_decided_at_once() -> None:
    candidates = [
        Candidate(f"j{n}", 1.0 + n / 7, {"GPU-a": 3 + n % 5, "memory": 1 + n % 3})
        for n in range(EXACT)
    ]
    assert cheapest({"GPU-a": 30, "memory": 10}, candidates) is not None
