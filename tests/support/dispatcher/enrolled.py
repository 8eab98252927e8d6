"""What a dispatcher declares for a host, where a test runs none."""

from modelyard.broker import Broker
from modelyard.contract.topology import EXCHANGES, REPORTS_QUEUE, queues_of_host


async def enrol(broker: Broker, host_id: str) -> None:
    """Declare the queues of a host and its way to report."""
    await broker.declare(
        [*queues_of_host(host_id), REPORTS_QUEUE],
        exchanges=EXCHANGES,
        extra_bindings=[(REPORTS_QUEUE, host_id)],
    )
