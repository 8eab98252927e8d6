"""Whether this machine is ready for a gateway: `modelyard doctor --service gateway`."""

from gateway.service import QUEUES
from gateway.settings import GatewaySettings
from modelyard.broker.doctor import BrokerDuties, check_broker
from modelyard.contract.topology import JOBS
from modelyard.doctor.diagnosis import Diagnosis
from modelyard.store.doctor.server import check_database


async def examine(settings: GatewaySettings) -> list[Diagnosis]:
    """Look at all that a gateway with these settings uses."""
    return [
        *await check_broker(
            settings.amqp_url.get_secret_value(),
            BrokerDuties(publishes_to=JOBS, declares=QUEUES),
        ),
        *await check_database(settings.mongo_url.get_secret_value()),
    ]
