"""Reading CPU and memory of processes."""

import os

from bench.processes import Usage, cpu_between, memory, parse_stat, read, usage_of
from deploy.local.processes import ProcessId

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STAT = (
    "4242 (a (strange) name) S 1 4242 4242 0 -1 4194560 1000 0 0 0 "
    "300 200 7 9 20 0 4 0 123456 1048576 512 18446744073709551615"
)


def process(pid: int) -> ProcessId:
    """Return a process that was started at tick 1."""
    return ProcessId(pid, 1, "boot")


def test_a_line_of_stat_is_read_whatever_the_name_of_the_program() -> None:
    usage = parse_stat(STAT)

    assert usage == Usage(cpu_s=500 / TICKS_PER_S, rss_bytes=512 * PAGE_BYTES)


def test_this_process_uses_cpu_and_memory() -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    before = usage_of(own)
    assert before is not None
    assert before.rss_bytes > PAGE_BYTES

    while (now := usage_of(own)) is not None and now.cpu_s <= before.cpu_s:
        sum(range(10_000))

    assert now is not None


def test_a_process_that_has_ended_is_left_out() -> None:
    gone = ProcessId((1 << 22) + 1, 1, "boot")

    assert usage_of(gone) is None
    assert read({"gateway": [gone]}) == {"gateway": {}}


def test_a_process_that_started_in_between_counts_from_its_start() -> None:
    before = {"worker": {process(1): Usage(10.0, 100)}}
    after = {"worker": {process(1): Usage(12.5, 150), process(2): Usage(0.5, 50)}}

    assert cpu_between(before, after) == {"worker": 3.0}
    assert memory(after) == {"worker": 200}


def test_a_process_that_ended_in_between_takes_nothing_away() -> None:
    before = {"worker": {process(1): Usage(10.0, 100), process(2): Usage(4.0, 100)}}
    after = {"worker": {process(1): Usage(11.0, 100)}}

    assert cpu_between(before, after) == {"worker": 1.0}
