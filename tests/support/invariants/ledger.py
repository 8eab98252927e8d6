"""What a test has submitted, by its own account: the measure of what Modelyard must hold."""

import time
from dataclasses import dataclass, field

from modelyard.contract.ids import operation_id_for_key


@dataclass
class Ledger:
    """Operations by id. What was answered with an error that says no is in neither list."""

    accepted: set[str] = field(default_factory=set)
    """Answered 202, or confirmed by RabbitMQ."""
    unknown: set[str] = field(default_factory=set)
    """Asked for without a clear answer: each may exist or not. Acceptance takes it off."""
    accepted_at: float = 0.0
    """When the last one was accepted, on the clock of `time.monotonic`."""

    def accept(self, operation_id: str) -> None:
        """Note that an operation was accepted."""
        self.accepted_at = time.monotonic()
        self.accepted.add(operation_id)
        self.unknown.discard(operation_id)

    def wonder(self, key: str) -> str:
        """Note, before asking under this key, that no answer is known; return the operation's id.

        A key that was accepted before stays accepted.
        """
        operation_id = operation_id_for_key(key)
        if operation_id not in self.accepted:
            self.unknown.add(operation_id)
        return operation_id
