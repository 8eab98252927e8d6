"""How often the reader looks whether all work has ended."""

from bench.ends import pause_s


def test_the_next_look_comes_sooner_as_the_end_comes_near() -> None:
    assert pause_s(0, 100, 5.0) == 0.02
    assert pause_s(1, 1_000, 1.0) == 0.25
    assert pause_s(90, 100, 4.5) == 0.15
    assert pause_s(99, 100, 1.0) == 0.02
