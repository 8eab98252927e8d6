"""A fleet has exactly the slots that it is asked for."""

import pytest

from bench.scale.fleet import FleetPlan, Gauges


@pytest.mark.parametrize(("hosts", "slots"), [(10, 2_100), (200, 2_100), (2_000, 2_100), (3, 2)])
def test_all_slots_are_shared_out_as_equally_as_can_be(hosts: int, slots: int) -> None:
    shared = FleetPlan("amqp://", hosts, slots).slots_by_host()

    assert len(shared) == hosts
    assert sum(shared.values()) == slots
    assert max(shared.values()) - min(shared.values()) <= 1


def test_the_first_command_after_a_reset_is_noted() -> None:
    gauges = Gauges.new()
    gauges.count_command()
    gauges.first_command.value = 0.0

    gauges.count_command()
    first = gauges.first_command.value
    gauges.count_command()

    assert gauges.commands.value == 3
    assert 0.0 < first == gauges.first_command.value <= gauges.last_command.value
