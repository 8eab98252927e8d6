"""Numbers of bytes for people: short, and never in the notation of scientists."""

import pytest

from modelyard.contract.capacity.sizes import part_text, size_text

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1_023, "1023 bytes"),
        (1_536, "1.5 KiB"),
        (85_017_493_504, "79.18 GiB"),
        (1_023 * GIB, "1023 GiB"),
        (1 << 40, "1 TiB"),
    ],
)
def test_a_size_has_the_largest_unit_that_it_reaches(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0/0 bytes"),
        (40 * GIB, 85_017_493_504, "40/79.18 GiB"),
        (GIB // 2, (1 << 40) - GIB // 2, "0.5/1024 GiB"),
    ],
)
def test_a_part_has_the_unit_of_the_whole(part: int, whole: int, text: str) -> None:
    assert part_text(part, whole) == text
