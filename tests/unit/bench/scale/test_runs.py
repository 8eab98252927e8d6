"""What a run measures, by the sizes that a person asks for."""

from bench.scale.runs import Sizes


def test_only_sizes_up_to_the_largest_are_measured() -> None:
    sizes = Sizes(jobs=100, most_hosts=200, most_waiting=100_000, takeovers=1)

    assert sizes.hosts == [10, 200]
    assert sizes.waiting == [1_000, 10_000, 100_000]
