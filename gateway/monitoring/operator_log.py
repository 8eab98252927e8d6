"""The log of operators' changes: who changed hosts, the catalog, keys, dead letters."""

import structlog

from modelyard.contract.access.scopes import Principal

log = structlog.get_logger(__name__)


def log_change(caller: Principal, action: str, **what: object) -> None:
    """Log a change that was made. It is logged whether the access log is on or not.

    `action` is what was changed and how, such as `host.drain`.
    """
    log.info("operator.change", action=action, key_id=caller.key_id, tenant=caller.tenant, **what)
