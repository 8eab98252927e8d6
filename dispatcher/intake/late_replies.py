"""Replies to messages whose idempotency key was used before: their operation is recorded already.

What a crash leaves behind: the message is acknowledged only after this, so it comes again, and its
publisher may be told twice.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from dispatcher.events import EventLog, ended_event
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.messages import MAX_EVENT_RESULT_BYTES, Event
from modelyard.store import Store
from modelyard.store.operation_queries import KnownOperation
from modelyard.store.records import ReplyAddress

Payloads = Mapping[str, Mapping[str, ReplyAddress | None]]
"""By operation: the hashes of all payloads that came with its id, each with its newest address."""


class LateReplies:
    """Tells publishers what they can't hear as the first publisher of a key does."""

    def __init__(self, store: Store, event_log: EventLog) -> None:
        self._store = store
        self._event_log = event_log

    async def tell_ends(
        self, known: Mapping[str, KnownOperation], addresses: Mapping[str, ReplyAddress]
    ) -> None:
        """Tell the ends of recorded operations at these addresses: now, or once they come.

        The address takes the place of an earlier one: who asks again has probably lost the first
        queue. Raises `StoreUnavailableError`.
        """
        if not addresses:
            return
        # Before the record is written: whoever is about to end one has read it already.
        self._event_log.redirect(addresses)
        await self._store.operations.set_replies(
            (known[key], address) for key, address in addresses.items()
        )
        found = await self._store.operation_queries.get_many(list(addresses))
        ended = {key: one for key, one in found.items() if one.state.terminal}
        if not ended:
            return
        results = await self._store.operation_queries.small_results(
            list(ended), most_bytes=MAX_EVENT_RESULT_BYTES
        )
        self._event_log.redirect_no_more(ended)
        self._event_log.reply(
            [(addresses[key], ended_event(one, results.get(key))) for key, one in ended.items()]
        )

    def refuse(self, kept: Mapping[str, str], payloads: Payloads) -> None:
        """Tell publishers whose payload is not the one that has the key; `kept` has its hash."""
        self._event_log.reply(
            [
                (address, _mismatch(operation_id, payload_hash))
                for operation_id, hash_kept in kept.items()
                for payload_hash, address in payloads[operation_id].items()
                if address is not None and payload_hash != hash_kept
            ]
        )


def _mismatch(operation_id: str, payload_hash: str) -> Event:
    return Event(
        event_id=f"{operation_id}:payload_mismatch:{payload_hash}",
        type="operation.payload_mismatch",
        at=datetime.now(UTC),
        operation_id=operation_id,
        error=ErrorInfo.of(ErrorCode.IDEMPOTENCY_KEY_REUSED),
    )
