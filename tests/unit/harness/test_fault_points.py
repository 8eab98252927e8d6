"""The fault suite kills each process at each of its crash points; no new one is forgotten."""

import pytest

from modelyard.process.crash_points import CRASH_POINTS
from tests.faults.dispatcher import test_dispatcher as dispatchers
from tests.faults.dispatcher.test_drains import END_POINTS, GIVEN_UP_POINTS, MOVE_POINTS
from tests.faults.dispatcher.test_leadership import LEASE_POINTS
from tests.faults.dispatcher.test_repairs import REPAIRED
from tests.faults.gateway import test_gateway as gateways
from tests.faults.residency import test_residency as residency
from tests.faults.worker import test_worker as workers
from tests.faults.worker.test_hosts import LOST_POINTS

KILLED = {
    "gateway": {*gateways.POINTS},
    "dispatcher": {*dispatchers.POINTS, dispatchers.PIECE, *LOST_POINTS, *REPAIRED}
    | {*MOVE_POINTS, *GIVEN_UP_POINTS, *END_POINTS, *LEASE_POINTS}
    | {*residency.EVICTION_POINTS, residency.RELOCATES, residency.IDLE},
    "worker": {*workers.POINTS, workers.PULLS, workers.PULLED, workers.PIECE}
    | {*workers.STOP, workers.HALT, workers.DISCARD},
}


@pytest.mark.parametrize("service", KILLED)
def test_each_crash_point_is_one_of_a_fault_test(service: str) -> None:
    points = {one for one in CRASH_POINTS if one.partition(".")[0] == service}
    assert KILLED[service] == points
