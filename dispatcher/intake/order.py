"""The order in which operations get their places in line; pure functions."""

from collections.abc import Mapping, Sequence

from modelyard.store.operation_queries import KnownOperation


def in_order(
    brought: Mapping[str, str | None],
    known: Mapping[str, KnownOperation],
    unpublished: Sequence[KnownOperation],
) -> list[str]:
    """Return the ids of the operations that get places in line now, in their order.

    `brought` maps the operations of this batch to their jobs, in the broker's order. `unpublished`
    are recorded operations of the same jobs whose messages the broker did not confirm. For each
    operation of the batch:

    - It has a place already (a redelivery): it keeps it, and nothing goes before it.
    - It is recorded: unpublished operations of its job that were recorded earlier go before it.
    - It is not recorded yet, so its age is unknown: all unpublished operations of its job go before
      it.

    All other operations wait for their own messages.
    """
    order: list[str] = []
    left = sorted(
        (one for one in unpublished if one.operation_id not in brought),
        key=lambda one: one.accepted,
    )
    for key, job_id in brought.items():
        there = known.get(key)
        if there is not None and there.line is not None:
            continue
        ahead = [
            one
            for one in left
            if one.job_id == job_id and (there is None or one.accepted < there.accepted)
        ]
        order += [one.operation_id for one in ahead]
        left = [one for one in left if one not in ahead]
        order.append(key)
    return order
