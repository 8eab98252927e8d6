"""A host as clients see it, and as the command line prints it."""

import pytest

from gateway.views import host_view
from modelyard.cli.printing.output import Output
from modelyard.contract.capacity.ledger import Allocation, ResidentAllocation
from modelyard.contract.capacity.offers import Device, DeviceReading, HostCapacity
from modelyard.contract.views import Amount
from modelyard.store.records import HostRecord
from tests.support.scheduling import GIB, host


def two_models() -> HostRecord:
    """Return a host with a model in memory, and one that is not."""
    there = host(
        Allocation(
            job_id="loaded",
            generation=1,
            memory=GIB,
            resident=ResidentAllocation(memory=3 * GIB, devices={"GPU-1": 5 * GIB}),
        ),
        Allocation(job_id="unloaded", generation=1, memory=2 * GIB),
    )
    capacity = HostCapacity(
        cpus=8,
        memory=32 * GIB,
        reserved_memory=GIB,
        devices=(Device(uuid="GPU-1", memory=8 * GIB),),
    )
    reading = DeviceReading(uuid="GPU-1", memory_used=6 * GIB, processes=2)
    told = {"capacity": capacity, "readings": (reading,), "memory_used": 9 * GIB}
    return there.model_copy(update=told)


def test_the_memory_of_a_host_says_what_loaded_models_hold_and_what_is_in_use() -> None:
    assert host_view(two_models()).memory == Amount(
        allocatable=31 * GIB, allocated=6 * GIB, resident=3 * GIB, reserved=GIB, measured=9 * GIB
    )


def test_hosts_are_printed_with_what_models_hold_and_the_processes_of_each_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=False).hosts([host_view(two_models())])
    hosts, devices = capsys.readouterr().out.split("\n\n")
    assert cell(hosts, "memory") == "6/31 GiB"
    assert cell(hosts, "resident") == "3 GiB"
    assert cell(hosts, "used") == "9 GiB"
    assert cell(devices, "allocated") == "5/8 GiB"
    assert cell(devices, "processes") == "2"


def cell(table: str, column: str) -> str:
    """Return what the first line of a table has below the name of a column."""
    names, line = table.splitlines()[:2]
    return line[names.index(column) :].partition("  ")[0].strip()
